# The guide's WebSocket server, as it is written.
import asyncio
import websockets
import json
from mullama import Model, Context
model = Model.load("./model.gguf")
async def handler(websocket):
    context = Context(model)
    async for message in websocket:
        for token in context.generate_stream(message, max_tokens=500):
            await websocket.send(json.dumps({
                "type": "token", "text": token.text
            }))
        await websocket.send(json.dumps({"type": "done"}))
asyncio.run(websockets.serve(handler, "localhost", 8080))
