# The tutorial's server-sent events with FastAPI, as they are written.
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from mullama import Model, Context, SamplerParams
import json

app = FastAPI()
model = Model.load("./model.gguf", n_gpu_layers=-1)
ctx = Context(model, n_ctx=4096)

class StreamRequest(BaseModel):
    prompt: str
    max_tokens: int = 200

@app.post("/stream")
async def stream(req: StreamRequest):
    async def generate():
        pieces = ctx.generate_stream(
            req.prompt, max_tokens=req.max_tokens,
            params=SamplerParams(temperature=0.7)
        )
        for i, piece in enumerate(pieces):
            data = json.dumps({"token": piece, "index": i, "done": False})
            yield f"data: {data}\n\n"

        yield f'data: {json.dumps({"token": "", "index": i+1, "done": True})}\n\n'
        ctx.clear_cache()

    return StreamingResponse(generate(), media_type="text/event-stream")

# Run: uvicorn server:app --port 3000
