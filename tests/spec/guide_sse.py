# The guide's server-sent events with FastAPI, as they are written.
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from mullama import Model, Context, StreamConfig
app = FastAPI()
model = Model.load("./model.gguf")
@app.post("/generate")
async def generate(prompt: str):
    async def event_stream():
        context = Context(model)
        config = StreamConfig(max_tokens=500)
        for token in context.generate_stream(prompt, config=config):
            yield f"data: {{'text': '{token.text}'}}\n\n"
        yield "data: [DONE]\n\n"
    return StreamingResponse(event_stream(), media_type="text/event-stream")
