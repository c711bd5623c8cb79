"""Puts a report together and writes it: one page."""

from collections.abc import Sequence
from pathlib import Path

from alt_jax import __version__
from alt_jax.partial import file_for, writing
from alt_jax.report import page, sections
from alt_jax.report.asked import ask
from alt_jax.report.folders import check


def report(
    folders: Sequence[Path], out: Path | None = None, price: float | None = None, data: Sequence[str] = ()
) -> Path:
    """Writes the report of runs and studies.

    Args:
      folders: Run folders, finished or not, and folders of studies.
      out: The page; by default `report.html` in the first folder.
      price: US dollars an hour of the machine that trained.
      data: Where the runs' datasets are, if not where they were.

    Returns:
      Where the page is.

    Raises:
      InputError: A folder is neither a run nor a study, or the page cannot be written.
    """
    out = check(folders, out, price)
    with file_for(out) as partial:
        asked = ask(folders, data)
        names = [*(run.name for run in asked.runs), *(study.name for study in asked.studies)]
        title, footer = f"alt-jax report: {', '.join(names)}", f"Made by alt-jax {__version__}."
        content = page.page(title, " · ".join(names), sections.sections(asked, price), footer)
        with writing(out):
            partial.write_text(content, encoding="utf-8")
    return out
