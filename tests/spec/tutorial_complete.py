# The tutorial's complete working example, as it is written.
import time
from mullama import Model, Context, SamplerParams

MODEL_PATH = "./model.gguf"
model = Model.load(MODEL_PATH, n_gpu_layers=-1)
ctx = Context(model, n_ctx=2048)

print("Mullama Streaming Demo")
print("======================\n")

# --- Basic streaming ---
print("--- Basic Streaming ---")
prompt = "The three laws of robotics are:"
print(prompt, end="", flush=True)
pieces = ctx.generate_stream(prompt, max_tokens=100,
                              params=SamplerParams(temperature=0.7))
for p in pieces:
    print(p, end="", flush=True)
print("\n")

# --- With performance stats ---
print("--- Performance Measurement ---")
start = time.time()
pieces = ctx.generate_stream("Explain gravity in one paragraph:", max_tokens=150)
count = 0
print("> ", end="", flush=True)
for p in pieces:
    print(p, end="", flush=True)
    count += 1
elapsed = time.time() - start
print(f"\n[{count} tokens in {elapsed:.2f}s = {count/elapsed:.1f} tok/s]\n")

# --- Different temperatures ---
print("--- Temperature Comparison ---")
for temp in [0.1, 0.7, 1.2]:
    print(f"temp={temp}: ", end="", flush=True)
    pieces = ctx.generate_stream("Once upon a time", max_tokens=30,
                                  params=SamplerParams(temperature=temp))
    for p in pieces:
        print(p, end="", flush=True)
    print()
    ctx.clear_cache()

# --- Early stopping ---
print("\n--- Early Stopping (stop at period) ---")
pieces = ctx.generate_stream("The meaning of life is", max_tokens=200)
text = ""
print("> ", end="", flush=True)
for p in pieces:
    print(p, end="", flush=True)
    text += p
    if "." in text and len(text) > 50:
        print(" [stopped]")
        break
else:
    print()
