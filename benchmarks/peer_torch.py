"""A peer to measure alt-jax against: the same towers, losses and steps as a plain PyTorch training loop has them.

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 transformers numpy pyarrow
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=200000000000 \
        ENV/bin/python benchmarks/peer_torch.py DATASET --task pretrain --batch 128 --length 100 --seconds 10

It runs in an environment of its own, without JAX and without alt-jax; of that it only reads DATASET, a prepared folder.
The two variables keep glibc from handing every large tensor back to the kernel and fetching it anew, page by page.

What practitioners and the authors' released code do is done here: prompts are built and tokenised when a batch is made,
and padded to a fixed length; pretraining reads the whole prompt once for ICL and once more for MTM, beside the masked
one for MLM; MLM's logits are computed at every position; the optimisers are `torch.optim`'s with their defaults. Where
the released code is clumsy it is not copied: MTM's attention leaves padding out, and DCN-Mix's experts share their
products instead of a loop. Weights are random. The last line of the output is JSON.

`--serve` lets a driver take turns with it: "ready" after the warm-up, then one line of JSON for each line of stdin.
"""

import argparse
import itertools
import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertModel

TASKS = ("pretrain", "ctr", "plm", "joint", "ctr-infer", "plm-infer", "joint-infer")
TOWERS = {  # layers, width, heads, inner width
    "tinybert": (4, 312, 12, 1200),
    "minilm": (6, 384, 12, 1536),
    "roberta-base": (12, 768, 12, 3072),
}
MASK_ID = 1  # of features, by alt-jax's numbering
IGNORED = -100
MASK_RATE, NOISE, TEMPERATURE, L2 = 0.15, 25, 0.7, 3e-4
Batch = dict[str, Tensor]


class Data:
    """Rows of a prepared dataset, and the batches that a task wants of them."""

    def __init__(self, folder: Path, task: str, length: int):
        self.task, self.length = task, length
        schema = json.loads((folder / "schema.json").read_text())
        if any(field["kind"] != "category" for field in schema["fields"]):
            raise SystemExit(f"{folder} has fields that are no plain categories, which this peer does not know.")
        self.names = [field["name"] for field in schema["fields"]]
        self.num_ids = max(field["offset"] + field["size"] for field in schema["fields"])
        vocabulary = pq.read_table(folder / "vocabulary.parquet")
        self.strings, feature = vocabulary["text"].to_pylist(), vocabulary["feature_id"].to_numpy()
        self.counts = np.bincount(feature, weights=vocabulary["count"].to_numpy(), minlength=self.num_ids)
        split = folder / ("test" if task.endswith("-infer") else "train")
        self.values = _joined(split, "values")
        self.ids = feature[self.values].astype(np.int64)
        self.labels = _joined(split, "labels").astype(np.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.rng = np.random.default_rng(0)

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches without end: shuffled anew for every epoch, or in order for inference."""
        count = len(self.labels)
        while True:
            order = np.arange(count) if self.task.endswith("-infer") else self.rng.permutation(count)
            for first in range(0, count - size + 1, size):
                yield self.collate(order[first : first + size])

    def collate(self, rows: np.ndarray) -> Batch:
        """What the task reads of these rows."""
        batch = {"ids": self.ids[rows], "labels": self.labels[rows]}
        if not self.task.startswith("ctr"):
            batch |= self.prompts(rows)
        if self.task == "pretrain":
            masked = self.choose_fields(len(rows))
            batch |= {"mtm_fields": masked, "mtm_target": np.take_along_axis(batch["ids"], masked, axis=1)}
            batch["masked_ids"] = batch["ids"].copy()
            np.put_along_axis(batch["masked_ids"], masked, MASK_ID, axis=1)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def prompts(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Prompts of these rows; for pretraining also with the values of some fields masked, token by token."""
        sentences, spans = [], []
        for row in self.values[rows].tolist():
            sentence, where = "", []
            for name, value in zip(self.names, row, strict=True):
                sentence += f"{name} is "
                where.append((len(sentence), len(sentence) + len(self.strings[value])))
                sentence += f"{self.strings[value]}. "
            sentences.append(sentence.rstrip())
            spans.append(where)
        masking = self.task == "pretrain"
        encoded = self.tokenizer(
            sentences,
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_token_type_ids=False,
            return_offsets_mapping=masking,
            return_tensors="np",
        )
        found = {"tokens": encoded["input_ids"], "mask": encoded["attention_mask"]}
        if masking:
            chosen = np.array(spans)[np.arange(len(rows))[:, None], self.choose_fields(len(rows))]  # [B, n, 2]
            begin, end = encoded["offset_mapping"][:, :, None, 0], encoded["offset_mapping"][:, :, None, 1]
            hidden = ((begin < chosen[:, None, :, 1]) & (end > chosen[:, None, :, 0])).any(axis=2)
            found["masked_tokens"] = np.where(hidden, self.tokenizer.mask_token_id, found["tokens"])
            found["mlm_target"] = np.where(hidden, found["tokens"], IGNORED)
        return found

    def choose_fields(self, rows: int) -> np.ndarray:
        """The fields that each row masks [B, n], without replacement."""
        count = max(1, int(len(self.names) * MASK_RATE))
        return self.rng.random((rows, len(self.names))).argsort(axis=1)[:, :count]


def _joined(split: Path, part: str) -> np.ndarray:
    """The shards of a part, one behind the other."""
    return np.concatenate([np.load(file) for file in sorted(split.glob(f"{part}-*.npy"))])


class CrossMix(nn.Module):
    """A cross layer of DCN-V2 that is a mixture of low-rank experts (arXiv 2008.13535, eq. 6)."""

    def __init__(self, width: int, experts: int = 4, rank: int = 32):
        super().__init__()
        shapes = {"v": (experts, width, rank), "c": (experts, rank, rank), "u": (experts, rank, width)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * math.sqrt(2 / sum(shape[1:]))))
        self.bias = nn.Parameter(torch.zeros(width))
        self.gate = nn.Linear(width, experts, bias=False)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """x_0 is the input of the first layer, x that of this one; both [B, N]."""
        inner = torch.tanh(torch.einsum("bn,enr->ber", x, self.v))
        inner = torch.tanh(torch.einsum("ber,erk->bek", inner, self.c))
        gated = inner * self.gate(x).softmax(dim=-1).unsqueeze(-1)
        return x + x0 * (torch.einsum("ber,ern->bn", gated, self.u) + self.bias)


class CTRTower(nn.Module):
    """DCN-Mix: feature ids [B, F] to h_c = concat(cross, deep)."""

    def __init__(self, num_ids: int, fields: int, dim: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(num_ids, dim)
        nn.init.normal_(self.embedding.weight, std=1e-4)
        widths = (fields * dim, 300, 300, 128)
        self.cross = nn.ModuleList(CrossMix(widths[0]) for _ in range(2))
        layers = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.2)) for a, b in itertools.pairwise(widths)]
        self.deep = nn.Sequential(*(module for layer in layers for module in layer))
        self.width = widths[0] + widths[-1]

    def forward(self, ids: Tensor) -> Tensor:
        """h_c of the rows."""
        x0 = self.embedding(ids).flatten(1)
        x = x0
        for layer in self.cross:
            x = layer(x0, x)
        return torch.cat([x, self.deep(x0)], dim=1)


def text_tower(tower: str, tokenizer: Any) -> BertModel:
    layers, width, heads, inner = TOWERS[tower]
    config = BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=inner,
        pad_token_id=tokenizer.pad_token_id,
    )  # whose dropout is 0.1
    return BertModel(config, add_pooling_layer=False)


class Click(nn.Module):
    """Finetuning: the click logits of `ctr`, `plm` or `joint`."""

    def __init__(self, strategy: str, data: Data, tower: str):
        super().__init__()
        if strategy != "plm":
            self.ctr = CTRTower(data.num_ids, len(data.names))
            self.linear = nn.Embedding(data.num_ids, 1)
            nn.init.normal_(self.linear.weight, std=1e-4)
            self.ctr_logit = nn.Linear(self.ctr.width, 1)
        if strategy != "ctr":
            self.text = text_tower(tower, data.tokenizer)
            self.text_logit = nn.Linear(self.text.config.hidden_size, 1)
        if strategy == "joint":
            self.alpha = nn.Parameter(torch.tensor(0.5))
        self.strategy = strategy

    def forward(self, batch: Batch) -> list[Tensor]:
        """Logits [B], the strategy's own first, then for `joint` those of its parts."""
        logits = []
        if self.strategy != "plm":
            h = self.ctr(batch["ids"])
            logits.append((self.ctr_logit(h) + self.linear(batch["ids"]).sum(dim=1)).squeeze(1))
        if self.strategy != "ctr":
            states = self.text(batch["tokens"], attention_mask=batch["mask"]).last_hidden_state
            logits.append(self.text_logit(states[:, 0]).squeeze(1))
        if self.strategy == "joint":
            logits.insert(0, self.alpha * logits[0] + (1 - self.alpha) * logits[1])
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """BCE, summed over the logits."""
        return sum(functional.binary_cross_entropy_with_logits(logit, batch["labels"]) for logit in self(batch))


class Projection(nn.Module):
    """Linear → GELU → Linear → dropout, plus the first Linear's output, then LayerNorm."""

    def __init__(self, width: int, dim: int = 128):
        super().__init__()
        self.first, self.second = nn.Linear(width, dim), nn.Linear(dim, dim)
        self.dropout, self.norm = nn.Dropout(0.2), nn.LayerNorm(dim)

    def forward(self, h: Tensor) -> Tensor:
        """One view of the rows, where ICL compares it with the other."""
        first = self.first(h)
        return self.norm(first + self.dropout(self.second(functional.gelu(first))))


class Pretraining(nn.Module):
    """Both towers under ICL + MLM + MTM (arXiv 2310.19453)."""

    def __init__(self, data: Data, tower: str, dim: int = 32):
        super().__init__()
        self.ctr, self.text = CTRTower(data.num_ids, len(data.names)), text_tower(tower, data.tokenizer)
        table, text = self.ctr.width, self.text.config.hidden_size
        self.align_ctr, self.align_text = Projection(table), Projection(text)
        hidden = nn.Linear(text + table, text)
        self.mlm_head = nn.Sequential(hidden, nn.Tanh(), nn.Dropout(0.2), nn.Linear(text, len(data.tokenizer)))
        self.query = nn.Sequential(nn.Linear(table, text), nn.LayerNorm(text))
        self.mtm_head = nn.Linear(table + text, len(data.names) * dim)
        self.table, self.bias = nn.Embedding(data.num_ids, dim), nn.Embedding(data.num_ids, 1)
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.zeros_(self.bias.weight)
        unigram = torch.tensor(data.counts / data.counts.sum(), dtype=torch.float32)
        self.register_buffer("unigram", unigram)
        self.register_buffer("log_unigram", unigram.log())

    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Token states [B, L, D] of prompts."""
        return self.text(tokens, attention_mask=mask).last_hidden_state

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the three losses."""
        h = self.ctr(batch["ids"])
        return self.icl(batch, h) + self.mlm(batch, h) + self.mtm(batch)

    def icl(self, batch: Batch, h: Tensor) -> Tensor:
        """Which prompt of the batch is a row's own, and which row a prompt's."""
        text = self.read(batch["tokens"], batch["mask"])[:, 0]
        scores = self.align_ctr(h) @ self.align_text(text).T / TEMPERATURE
        own = torch.arange(len(scores))
        return 0.5 * (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own))

    def mlm(self, batch: Batch, h: Tensor) -> Tensor:
        """The masked tokens, from their states beside h_c; logits at every position, as is usual."""
        states = self.read(batch["masked_tokens"], batch["mask"])
        helped = torch.cat([states, h.unsqueeze(1).expand(-1, states.shape[1], -1)], dim=-1)
        logits = self.mlm_head(helped)
        return functional.cross_entropy(logits.flatten(0, 1), batch["mlm_target"].flatten(), ignore_index=IGNORED)

    def mtm(self, batch: Batch) -> Tensor:
        """The masked ids, told from noise by what the rest of the row and its prompt say (NCE)."""
        states, h = self.read(batch["tokens"], batch["mask"]), self.ctr(batch["masked_ids"])
        scores = torch.einsum("bd,bld->bl", self.query(h), states) / math.sqrt(states.shape[-1])
        weights = scores.masked_fill(batch["mask"] == 0, -math.inf).softmax(dim=-1)
        attended = torch.einsum("bl,bld->bd", weights, states)
        fields, target = batch["mtm_fields"], batch["mtm_target"]  # [B, n]
        vectors = self.mtm_head(torch.cat([h, attended], dim=-1)).unflatten(1, (-1, self.table.embedding_dim))
        vectors = vectors[torch.arange(len(fields)).unsqueeze(1), fields]  # [B, n, E]
        noise = torch.multinomial(self.unigram, target.numel() * NOISE, replacement=True).view(*target.shape, NOISE)
        ids = torch.cat([target.unsqueeze(-1), noise], dim=-1)
        scores = torch.einsum("bne,bnke->bnk", vectors, self.table(ids)) + self.bias(ids).squeeze(-1)
        scores = scores - self.log_unigram[ids] - math.log(NOISE)
        return -(functional.logsigmoid(scores[..., 0]) + functional.logsigmoid(-scores[..., 1:]).sum(dim=-1)).mean()


def optimizers(model: nn.Module, task: str) -> list[torch.optim.Optimizer]:
    """The published recipe: AdamW for the text tower, Adam with L2 on the tables for the rest."""
    if task == "pretrain":
        return [torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-3)]
    made: list[torch.optim.Optimizer] = []
    if task != "ctr":
        made.append(torch.optim.AdamW(model.text.parameters(), lr=5e-5, weight_decay=1e-3))
    named = [(name, parameter) for name, parameter in model.named_parameters() if not name.startswith("text.")]
    tables = [parameter for name, parameter in named if name in ("ctr.embedding.weight", "linear.weight")]
    rest = [parameter for name, parameter in named if name not in ("ctr.embedding.weight", "linear.weight")]
    groups = [{"params": rest}, {"params": tables, "weight_decay": 2 * L2}] if tables else [{"params": rest}]
    return [*made, torch.optim.Adam(groups, lr=1e-3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--tower", choices=TOWERS, default="minilm")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=100, help="tokens that prompts are padded to")
    parser.add_argument("--seconds", type=float, default=10, help="time to measure for; the last step is finished")
    parser.add_argument("--serve", action="store_true", help="measure once for each line of stdin")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    strategy, _, infers = arguments.task.partition("-")
    data = Data(arguments.dataset, arguments.task, arguments.length)
    pretrains = arguments.task == "pretrain"
    model = Pretraining(data, arguments.tower) if pretrains else Click(strategy, data, arguments.tower)
    model.train(not infers)
    updates = [] if infers else optimizers(model, arguments.task)
    batches = data.batches(arguments.batch)

    def train(batch: Batch) -> float:
        for update in updates:
            update.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        for update in updates:
            update.step()
        return loss.item()

    @torch.inference_mode()
    def infer(batch: Batch) -> float:
        # The loss of the strategy's own logit: it says that the scores are sound and costs next to nothing.
        return functional.binary_cross_entropy(torch.sigmoid(model(batch)[0]), batch["labels"]).item()

    step = infer if infers else train

    def measured() -> dict[str, Any]:
        steps, reading, start = 0, 0.0, time.perf_counter()
        while (now := time.perf_counter()) - start < arguments.seconds or not steps:
            batch = next(batches)
            reading += time.perf_counter() - now
            loss = step(batch)
            steps += 1
        passed = now - start
        return {
            "task": arguments.task,
            "tower": None if strategy == "ctr" else arguments.tower,
            "batch": arguments.batch,
            "length": None if strategy == "ctr" else arguments.length,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "allocator_set": all(f"MALLOC_{name}_" in os.environ for name in ("MMAP_MAX", "TRIM_THRESHOLD")),
            "steps": steps,
            "rows_per_s": steps * arguments.batch / passed,
            "data_share": reading / passed,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,  # Linux counts in kB
            "loss": loss,
        }

    step(next(batches))
    if not arguments.serve:
        print(json.dumps(measured()))
        return
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(measured()), flush=True)


if __name__ == "__main__":
    main()
