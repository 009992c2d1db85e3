# The tutorial's cancellation by signal and by disconnection, as it is written; it uses names of the tutorial before.
import signal

def stream_with_cancellation(ctx, prompt, max_tokens=500):
    cancelled = False

    def handle_cancel(sig, frame):
        nonlocal cancelled
        cancelled = True

    old_handler = signal.signal(signal.SIGINT, handle_cancel)

    pieces = ctx.generate_stream(prompt, max_tokens=max_tokens,
                                  params=SamplerParams(temperature=0.7))
    output = ""
    print("> ", end="", flush=True)

    for piece in pieces:
        if cancelled:
            print("\n[Generation cancelled]")
            break
        print(piece, end="", flush=True)
        output += piece

    if not cancelled:
        print()

    signal.signal(signal.SIGINT, old_handler)
    return output

# For FastAPI: check if client disconnected
@app.post("/stream")
async def stream(req: StreamRequest, raw: Request):
    async def generate():
        pieces = ctx.generate_stream(req.prompt, max_tokens=req.max_tokens)
        for piece in pieces:
            if await raw.is_disconnected():
                break  # Client left
            yield f"data: {json.dumps({'token': piece})}\n\n"

    return StreamingResponse(generate(), media_type="text/event-stream")
