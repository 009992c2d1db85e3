# The tutorial's handling of slow consumers, as it is written; the names that it uses are those of the tutorial before.
async def stream_with_backpressure(ctx, prompt, websocket, max_tokens=200):
    pieces = ctx.generate_stream(
        prompt, max_tokens=max_tokens,
        params=SamplerParams(temperature=0.7)
    )
    HIGH_WATER_MARK = 64 * 1024  # 64KB

    for piece in pieces:
        # Check write buffer size
        if hasattr(websocket, 'transport'):
            buffer_size = websocket.transport.get_write_buffer_size()
            if buffer_size > HIGH_WATER_MARK:
                # Wait for buffer to drain
                await asyncio.sleep(0.01)

        await websocket.send(json.dumps({"type": "token", "content": piece}))
