# The tutorial's measuring of tokens per second, as it is written; `ctx` is that of tutorial_console.py.
import time

def stream_with_stats(ctx, prompt, max_tokens=200, params=None):
    start_time = time.time()
    pieces = ctx.generate_stream(prompt, max_tokens=max_tokens, params=params)

    token_count = 0
    output = ""

    print("> ", end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
        output += piece
        token_count += 1
    print()

    elapsed = time.time() - start_time
    tokens_per_sec = token_count / elapsed if elapsed > 0 else 0

    print(f"--- Stats ---")
    print(f"Tokens: {token_count}")
    print(f"Time: {elapsed:.2f}s")
    print(f"Speed: {tokens_per_sec:.1f} tok/s")
    print(f"Characters: {len(output)}")

    return {"output": output, "tokens": token_count,
            "elapsed": elapsed, "tok_per_sec": tokens_per_sec}

# Usage
stats = stream_with_stats(ctx, "Explain quantum computing:", max_tokens=150)
