# The extension types of chats: a template, and one answer in the making; included by _core.pyx.

@cython.final
cdef class Templates:
    """A model's chat template, or one given as text (not empty). For something pending, it ends early with Stopped."""

    def __init__(self, Model model not None, bytes text not None, Pending pending=None):
        model.check()
        cdef string source = text
        cdef shared_ptr[CTemplates] made
        cdef StopSignal stop = stop_of(pending)
        with nogil:
            made = make_templates(model.shared, model.facts, source, stop)
        self.shared = move(made)

    def __dealloc__(self):
        if forked:
            new shared_ptr[CTemplates](self.shared)  # leaked, as the model

    @property
    def supports_thinking(self):
        check_fork()
        return self.shared.get().supports_thinking()

    def split(self, bytes text not None):
        """A text at special tokens, in pairs: a token and its name, or -1 and text between them."""
        cdef string data = text
        cdef vector[Part] parts
        with nogil:
            parts = self.shared.get().specials().split(data)
        return [(part.token, text[part.begin:part.end]) for part in parts]


@cython.final
cdef class Chat:
    """One answer of a chat: its prompt, and its parser. Texts are JSON, but for the grammar.

    For something pending, it ends early with Stopped.
    """

    def __init__(self, Templates templates not None, *, bytes messages not None, bytes tools not None, bytes tool_choice not None,
                 bint parallel_tool_calls, bytes grammar not None, bytes json_schema not None, bint thinking,
                 bytes reasoning_format not None, dict arguments not None, Pending pending=None):
        check_fork()
        cdef ChatRequest request
        request.messages = messages
        request.tools = tools
        request.tool_choice = tool_choice
        request.parallel_tool_calls = parallel_tool_calls
        request.grammar = grammar
        request.json_schema = json_schema
        request.thinking = thinking
        request.reasoning_format = reasoning_format
        for name, value in arguments.items():
            request.arguments.push_back(pair[string, string](<string> (<str> name).encode(), <string> (<str> value).encode()))
        cdef shared_ptr[CChat] made
        cdef StopSignal stop = stop_of(pending)
        with nogil:
            made = make_chat(templates.shared, request, stop)
        self.shared = move(made)

    def __dealloc__(self):
        if forked:
            new shared_ptr[CChat](self.shared)  # leaked, as the model

    @property
    def prompt(self):
        return self.shared.get().prompt().decode("utf-8", "replace")

    def prompt_tokens(self, Pending pending=None):
        """Token ids, of which none is a control token that users wrote. For something pending, it ends early with Stopped."""
        check_fork()
        cdef CChat * chat = self.shared.get()
        cdef vector[int32_t] tokens
        cdef StopSignal stop = stop_of(pending)
        with nogil:
            tokens = chat.prompt_tokens(stop)
        return tokens

    @property
    def stops(self):
        cdef vector[string] stops = self.shared.get().stops()
        return [stop.decode("utf-8", "replace") for stop in stops]

    def feed(self, str text not None, int32_t token):
        """What is new of the message: a list of (reasoning, content, call, call id, call name, call arguments)."""
        check_fork()
        cdef CChat * chat = self.shared.get()
        cdef string data = text.encode()
        cdef vector[ChatDelta] news
        with nogil:
            news = chat.feed(data, token)
        return deltas(news)

    def flush(self):
        """The same of what feed() held back, because it may have been the beginning of a mark; for when no more comes."""
        check_fork()
        cdef CChat * chat = self.shared.get()
        cdef vector[ChatDelta] news
        with nogil:
            news = chat.flush()
        return deltas(news)

    @property
    def n_parsed(self):
        """How many bytes llama.cpp's parsers read so far, those that they read again counted again."""
        return self.shared.get().n_parsed()

    def finish(self):
        """The same at the end of an answer that was not cut off; once."""
        check_fork()
        cdef CChat * chat = self.shared.get()
        cdef vector[ChatDelta] news
        with nogil:
            news = chat.finish()
        return deltas(news)


cdef list deltas(vector[ChatDelta] news):
    return [(d.reasoning.decode("utf-8", "replace"), d.content.decode("utf-8", "replace"), d.call,
             d.call_id.decode("utf-8", "replace"), d.call_name.decode("utf-8", "replace"),
             d.call_arguments.decode("utf-8", "replace")) for d in news]
