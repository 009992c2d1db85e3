"""A tour without an event loop: streaming, statistics, temperatures, stopping early. Takes the path of a GGUF file or none."""

from __future__ import annotations

import sys
import time

from mullama import Context, Model, SamplerParams

model = Model.load(sys.argv[1] if len(sys.argv) > 1 else None, n_gpu_layers=-1)
ctx = Context(model, n_ctx=2048)

print("--- Streaming")
prompt = "The three laws of robotics are:"
print(prompt, end="", flush=True)
for piece in ctx.generate_stream(prompt, max_tokens=100, params=SamplerParams(temperature=0.7)):
    print(piece, end="", flush=True)
print("\n")

print("--- Measuring")
start = time.perf_counter()
pieces = ctx.generate_stream("Explain gravity in one paragraph:", max_tokens=150)
count = sum(1 for _ in pieces)
elapsed = time.perf_counter() - start
timings = pieces.completion().timings
print(f"[{count} tokens in {elapsed:.2f} s = {count / elapsed:.1f} tokens/s, the prompt included]")
print(f"[the prompt {timings.prefill_ms:.1f} ms, the answer {timings.tokens_per_second:.1f} tokens/s]\n")

print("--- Temperatures")
for temperature in (0.1, 0.7, 1.2):
    print(f"{temperature}: ", end="", flush=True)
    for piece in ctx.generate_stream("Once upon a time", 30, SamplerParams(temperature=temperature)):
        print(piece, end="", flush=True)
    print()
    ctx.clear_cache()

print("\n--- Stopping at a full stop")
text = ""
for piece in ctx.generate_stream("The meaning of life is", max_tokens=200):
    print(piece, end="", flush=True)
    text += piece
    if "." in text and len(text) > 50:
        print(" [stopped]")
        break
ctx.close()
