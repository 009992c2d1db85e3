# The tutorial's WebSocket server, as it is written.
import asyncio, json, websockets
from mullama import Model, Context, SamplerParams

model = Model.load("./model.gguf", n_gpu_layers=-1)
ctx = Context(model, n_ctx=4096)

async def handle_client(websocket):
    print("Client connected")
    async for message in websocket:
        data = json.loads(message)
        prompt = data.get("prompt", "")
        max_tokens = data.get("max_tokens", 200)

        pieces = ctx.generate_stream(
            prompt, max_tokens=max_tokens,
            params=SamplerParams(temperature=0.7)
        )

        for piece in pieces:
            await websocket.send(json.dumps({"type": "token", "content": piece}))

        await websocket.send(json.dumps({"type": "done"}))
        ctx.clear_cache()

async def main():
    async with websockets.serve(handle_client, "localhost", 8765):
        print("WebSocket server on ws://localhost:8765")
        await asyncio.Future()  # Run forever

asyncio.run(main())
