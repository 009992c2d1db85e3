"""Measures how much sooner the first token arrives if 1,000 tokens of the prompt are cached.

The prompt shares 1,000 tokens with an earlier one, and has 16 of its own. In the same slot: the earlier stream has ended,
and the new one takes its slot. In another slot: the earlier stream still holds its slot (its reader has stopped, so it
computes nothing), and the new one gets a copy. Reference: all 1,016 tokens are new, with the same streams present. The
reader measures the time from the call to the first token; each process reports the median of three.
"""

from __future__ import annotations

import statistics
import time

from turns import Case, Figures, Question, Row, Settings, Side, endless, main, prompt

SHARED, OWN, N_CTX, TIMES = 1000, 16, 1536, 3


def measure(settings: Settings, *, shared: bool) -> Figures:
    from mullama import Context, Model

    config = endless(max_tokens=2)
    held = endless(max_tokens=100, buffer_size=1)
    other_slot = settings["slots"] == 2

    def first(tokens: list[int]) -> float:
        began = time.perf_counter()
        with context.generate_stream(tokens, config) as stream:
            next(stream)
            return time.perf_counter() - began

    times = []
    limits = {"n_ctx": N_CTX, "n_seq_max": settings["slots"], "n_threads": settings["threads"]}
    with Context(Model.load(settings["model"]), **limits) as context:
        for i in range(TIMES + 1):
            context.clear_cache()
            earlier = context.generate_stream(prompt(SHARED, seed=i), held if other_slot else config)
            next(earlier)
            if not other_slot:
                list(earlier)
            own = prompt(OWN, seed=1000 + i)
            times.append(first((prompt(SHARED, seed=i) if shared else prompt(SHARED, seed=500 + i)) + own))
            earlier.close()
    return {"first_ms": 1e3 * statistics.median(times[1:])}


def case(label: str, slots: int) -> Case:
    row = Row(label=label, side="shared", figure="first_ms", unit="ms", reference="new", reach=0.1, less=True)
    return Case({"model": "mid", "slots": slots}, [row])


QUESTION = Question(
    file=__file__,
    title="Shared prefixes",
    about=__doc__,
    sides={
        "new": Side(lambda settings: measure(settings, shared=False)),
        "shared": Side(lambda settings: measure(settings, shared=True)),
    },
    cases=[case("in the same slot", 1), case("in another slot", 2)],
)

if __name__ == "__main__":
    main(QUESTION)
