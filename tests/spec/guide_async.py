# The guide's asynchronous stream, as it is written.
import asyncio
from mullama import AsyncModel, StreamConfig
async def main():
    model = await AsyncModel.load("./model.gguf")
    config = StreamConfig(max_tokens=200, temperature=0.7)
    token_count = 0
    async for token in model.generate_stream("Tell me about Rust:", config=config):
        print(token.text, end="", flush=True)
        token_count += 1
    print(f"\nGenerated {token_count} tokens")
asyncio.run(main())
