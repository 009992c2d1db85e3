# The extension types of the engine and of the notifier of its readers, and the sampling that it is asked for; included by _core.pyx.

@cython.final
cdef class Notifier:
    def __cinit__(self):
        self.shared = make_shared[CNotifier]()

    def fileno(self):
        return self.shared.get().fd()

    def drain(self):
        """Empty the descriptor. The keys of the streams that were notified since the last time, in that order."""
        if forked:  # it is the parent's, who would miss the notification
            return []
        return self.shared.get().drain()


@cython.final
cdef class Engine:
    def __init__(self, Model model not None, *, uint32_t n_ctx, uint32_t n_cells, uint32_t n_batch, uint32_t n_ubatch,
                 uint32_t n_seq_max, int32_t n_threads, int32_t n_threads_batch, int64_t max_queue, bint reuse_prefix):
        model.check()
        cdef EngineParams params
        params.n_ctx = n_ctx
        params.n_cells = n_cells
        params.n_batch = n_batch
        params.n_ubatch = n_ubatch
        params.n_seq_max = n_seq_max
        params.n_threads = n_threads
        params.n_threads_batch = n_threads_batch
        params.max_queue = max_queue
        params.reuse_prefix = reuse_prefix
        params.facts = model.facts
        cdef shared_ptr[CEngine] made
        with nogil:
            made = make_shared[CEngine](model.shared, params)
        self.shared = move(made)

    def __dealloc__(self):
        if forked:
            new shared_ptr[CEngine](self.shared)  # leaked, as the model

    def run(self):
        """Work until stop(); the calling thread is the engine thread from here on."""
        cdef CEngine * engine = self.shared.get()
        with nogil:
            engine.run()

    def stop(self):
        if not forked:
            self.shared.get().stop()

    def release(self):
        """Give the memory back; only after run() has returned."""
        cdef CEngine * engine = self.shared.get()
        if not forked:
            with nogil:
                engine.release()

    def clear_cache(self):
        check_fork()
        self.shared.get().clear_cache()

    def save_state(self):
        """The cached prefixes as bytes. Waits for the engine's step to end."""
        check_fork()
        cdef CEngine * engine = self.shared.get()
        cdef string state
        with nogil:
            state = engine.save_state()
        return <bytes> state

    def load_state(self, bytes state not None):
        """Take cached prefixes over; the number of tokens in them. Waits for the engine's step to end."""
        check_fork()
        cdef CEngine * engine = self.shared.get()
        cdef string data = state
        cdef int64_t n
        with nogil:
            n = engine.load_state(data)
        return n

    def stats(self):
        check_fork()
        cdef EngineStats s = self.shared.get().stats()
        return (s.slots, s.busy, s.queued, s.max_queue, s.paused, s.cells, s.cached_cells, s.steps, s.tokens_in, s.tokens_out)

    @property
    def n_ctx(self):
        return self.shared.get().n_ctx()

    @property
    def n_batch(self):
        return self.shared.get().n_batch()

    @property
    def n_threads(self):
        return self.shared.get().n_threads()

    @property
    def generates(self):
        return self.shared.get().generates()

    def open(self, *, int64_t called_us, int64_t timeout_us):
        """A stream that is to be prepared. Raises QueueFullError."""
        check_fork()
        cdef Stream stream = Stream.__new__(Stream)
        cdef shared_ptr[CStream] made = make_shared[CStream](self.shared, called_us, timeout_us)
        self.shared.get().open(made)
        stream.shared = move(made)
        return stream


@cython.final
cdef class Pending:
    """The handle on a stream for who prepares its request; any thread, one at a time.

    Dropped before the request is submitted, it ends the stream with a fault.
    """

    def __dealloc__(self):
        if self.shared.get() == NULL:
            return
        if forked:
            new shared_ptr[CStream](self.shared)  # leaked, as the model
        else:
            self.shared.get().fail(FINISH_ERROR, FAULT_PREPARATION, b"the request was dropped before it was ready")

    @property
    def stopped(self):
        """Nobody wants the request any more: the stream was cancelled or dropped or is late, or the engine stops."""
        check_fork()
        return self.shared.get().stopped()

    def submit(self, Request request not None):
        """Hand it to the engine, without waiting; does nothing if the stream has ended. Raises ClosedError."""
        check_fork()
        if request.request == NULL:
            raise ValueError("the request was submitted already")
        submit(deref(self.shared.get()), deref(request.request))
        del request.request
        request.request = NULL

    def fail(self, str message not None):
        """End the stream with a fault, unless it has ended or the request was submitted."""
        check_fork()
        self.shared.get().fail(FINISH_ERROR, FAULT_PREPARATION, message.encode("utf-8", "replace"))

    def fail_timeout(self):
        """Likewise, because its time is up."""
        check_fork()
        self.shared.get().fail(FINISH_TIMEOUT, FAULT_NONE, b"")


@cython.final
cdef class Request:
    """What a stream asks of the engine, finished: its sampler is made, and its grammar compiled. It can be submitted once.

    Keys of `sampling` are the fields of SamplerParams but for the schema, which is a grammar by now; a chat brings its own.
    For n_logits see request.hpp. Raises GrammarError; for something pending it ends early with Stopped.
    """

    def __init__(self, Model model not None, vector[int32_t] prompt, *, int64_t max_tokens, int64_t delay_us, uint32_t buffer_size,
                 uint32_t n_top, int64_t min_tokens, vector[string] stops, dict sampling not None, Chat chat, list loras not None,
                 uint32_t n_logits, Pending pending=None):
        model.check()
        del self.request
        self.request = new CRequest()
        self.request.prompt = move(prompt)
        self.request.max_tokens = max_tokens
        self.request.delay_us = delay_us
        self.request.buffer_size = buffer_size
        self.request.n_top = n_top
        self.request.min_tokens = min_tokens
        self.request.stops = move(stops)
        self.request.n_logits = n_logits
        self.request.longest_piece = model.longest_piece
        for lora, scale in loras:
            if scale == 0:
                continue  # it is the same as without, and may share with it
            self.request.loras.push_back(pair[shared_ptr[CLora], float]((<Lora?> lora).shared, <float> scale))
        cdef Sampling chosen
        set_sampling(chosen, sampling)
        if chat is not None:
            self.request.preserved = chat.shared.get().preserved()
            amend_by_chat(chosen, deref(chat.shared.get()))
        cdef StopSignal stop = stop_of(pending)
        with nogil:
            self.request.finish(model.shared.get(), chosen, stop)

    def __dealloc__(self):
        if not forked:  # else leaked, as the model
            del self.request


cdef int set_sampling(Sampling & sampling, dict values) except -1:
    cdef vector[string] texts
    for name, value in values.items():
        if name == "grammar":
            sampling.set_grammar((<str> value).encode())
        elif name == "logit_bias":
            for token, bias in value:
                sampling.add_bias(<int32_t> token, <float> bias)
        elif isinstance(value, (tuple, list)):
            texts = [(<str> text).encode() for text in value]
            sampling.set((<str> name).encode(), texts)
        else:
            sampling.set((<str> name).encode(), <double> value)
    return 0
