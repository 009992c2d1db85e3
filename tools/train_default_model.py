"""Trains the bundled default model from the generated corpus, on the CPU, and writes it as GGUF."""

# Strategy: documents of similar length share a batch (padded on the right, from position 0), so no document sees
# another.  Matrices are trained with Muon, everything else with AdamW; the learning rate falls linearly to zero.
# The number of steps is fixed, not the time, so the same seed gives the same file on the same machine.

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from corpus import Document, documents, plain_text
from gguf_file import write
from network import Llama, Shape
from vocabulary import Vocabulary, train

ROOT = Path(__file__).resolve().parent.parent
Example = tuple[list[int], list[bool]]
IGNORE = -100


def encode(document: Document, vocabulary: Vocabulary) -> Example:
    """Token ids with BOS, and for each whether the model is trained on it; raw text ends with EOS."""
    ids, learn = [vocabulary.bos], [False]
    for text, wanted in document.parts:
        piece = vocabulary.encode(text)
        ids += piece
        learn += [wanted] * len(piece)
    if document.ends_with_eos:
        ids.append(vocabulary.eos)
        learn.append(True)
    return ids, learn


def batches(examples: list[Example], tokens: int, rng: random.Random) -> Iterator[list[Example]]:
    """Endless batches of about `tokens` tokens, of examples of similar length."""
    while True:
        order = list(examples)
        rng.shuffle(order)
        for start in range(0, len(order), 4096):
            group = sorted(order[start : start + 4096], key=lambda e: len(e[0]))
            made: list[list[Example]] = [[]]
            for example in group:
                if made[-1] and (len(made[-1]) + 1) * len(example[0]) > tokens:
                    made.append([])
                made[-1].append(example)
            rng.shuffle(made)
            yield from made


def tensors(batch: list[Example], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, padded on the right; tokens that the model is not trained on are ignored."""
    width = max(len(ids) for ids, _ in batch) - 1
    inputs = torch.zeros(len(batch), width, dtype=torch.long)
    targets = torch.full((len(batch), width), IGNORE, dtype=torch.long)
    for row, (ids, learn) in enumerate(batch):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        wanted = [i if w else IGNORE for i, w in zip(ids[1:], learn[1:], strict=True)]
        targets[row, : len(ids) - 1] = torch.tensor(wanted)
    return inputs.to(device), targets.to(device)


def loss_of(model: Llama, batch: list[Example], device: str, fast: bool) -> tuple[torch.Tensor, int]:
    """Mean loss over the trained tokens of a batch, and their number."""
    inputs, targets = tensors(batch, device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=fast):
        hidden = model(inputs)
        wanted = targets != IGNORE
        scores = model.scores(hidden[wanted])
    return cross_entropy(scores.float(), targets[wanted]), int(wanted.sum())


def validate(model: Llama, examples: list[Example], device: str, fast: bool) -> float:
    """Mean loss over held-out documents."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(examples), 32):
            loss, tokens = loss_of(model, examples[start : start + 32], device, fast)
            total, count = total + loss.item() * tokens, count + tokens
    return total / count


def fit(model: Llama, examples: list[Example], held_out: list[Example], args: argparse.Namespace) -> dict[str, float]:
    """Train for the fixed number of steps; returns the figures."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "token_embd" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "token_embd" in n]
    muon = torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    stream = batches(examples, args.batch, random.Random(args.seed))
    began, mean, seen = time.monotonic(), 0.0, 0
    for step in range(args.steps):
        rate = args.lr * min((step + 1) / 50, (args.steps - step) / args.steps)
        for optimiser in (muon, adam):
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
        batch = next(stream)
        loss, _ = loss_of(model, batch, args.device, args.bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        seen += sum(len(ids) for ids, _ in batch)
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0 or step + 1 == args.steps:
            speed = seen / (time.monotonic() - began)
            print(f"step {step:5d}  loss {mean:.4f}  {speed:.0f} tokens/s  {seen} tokens", flush=True)
    return {
        "train_loss": round(mean, 4),
        "validation_loss": round(validate(model, held_out, args.device, args.bf16), 4),
        "seconds": round(time.monotonic() - began),
        "tokens_seen": seen,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "mullama" / "models" / "default.gguf")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=50000)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--threads", type=int, default=1, help="a different number rounds differently")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    """Generate the corpus, make the vocabulary, train, and write the file."""
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    corpus = list(documents(args.seed, args.documents))
    held_back = list(documents(args.seed + 1_000_003, 500))
    vocabulary = Vocabulary(train((plain_text(d) for d in corpus[:20000]), Shape().vocab))
    examples = [encode(d, vocabulary) for d in corpus]
    held_out = sorted((encode(d, vocabulary) for d in held_back), key=lambda e: len(e[0]))
    longest = max(len(ids) for ids, _ in examples)
    total = sum(len(ids) for ids, _ in examples)
    print(
        f"{len(examples)} documents, {total} tokens, longest {longest}, vocabulary {len(vocabulary)}",
        flush=True,
    )
    model = Llama(Shape(vocab=len(vocabulary))).to(args.device)
    parameters = sum(p.numel() for p in model.parameters())
    figures: dict[str, float] = {"parameters": parameters, "documents": len(examples)}
    figures |= {"corpus_tokens": total, **fit(model, examples, held_out, args)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write(args.out, model.cpu(), vocabulary, args.seed)
    figures["bytes"] = args.out.stat().st_size
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
