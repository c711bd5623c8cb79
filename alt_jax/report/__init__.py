"""`alt-jax report`: what runs and studies left behind, as one HTML page that needs nothing else.

`folders` says which can be reported on and `sources` reads them; `clicks`, `alignment` and `card` ask models and
datasets, all of them through `asked`; `measures` are numbers, `figures` SVG and `page` HTML, of which `sections` make
the parts of the page and `build` the whole.
"""
