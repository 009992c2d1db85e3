# The extension types of the engine and of the notifier that it rings, and the sampling that it is asked for; included by _core.pyx.

@cython.final
cdef class Notifier:
    def __cinit__(self):
        self.shared = make_shared[CNotifier]()

    def fileno(self):
        return self.shared.get().fd()

    def drain(self):
        if not forked:  # else it is the parent's, who would miss the ring
            self.shared.get().drain()


@cython.final
cdef class Engine:
    def __init__(self, Model model not None, *, uint32_t n_ctx, uint32_t n_cells, uint32_t n_batch, uint32_t n_ubatch,
                 uint32_t n_seq_max, int32_t n_threads, int32_t n_threads_batch, bint reuse_prefix):
        model.check()
        cdef EngineParams params
        params.n_ctx = n_ctx
        params.n_cells = n_cells
        params.n_batch = n_batch
        params.n_ubatch = n_ubatch
        params.n_seq_max = n_seq_max
        params.n_threads = n_threads
        params.n_threads_batch = n_threads_batch
        params.reuse_prefix = reuse_prefix
        params.facts = model.facts
        cdef shared_ptr[CEngine] made
        with nogil:
            made = make_shared[CEngine](model.shared, params)
        self.shared = move(made)
        self.longest_piece = model.longest_piece

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
        return (s.slots, s.busy, s.queued, s.paused, s.cells, s.cached_cells, s.steps, s.tokens_in, s.tokens_out)

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

    def submit(self, vector[int32_t] prompt, *, int64_t max_tokens, int64_t called_us, int64_t timeout_us, int64_t delay_us,
               uint32_t buffer_size, uint32_t n_top, int64_t min_tokens, vector[string] stops, dict sampling not None,
               Chat chat, list loras not None, uint32_t n_logits):
        """Queue a request. Keys of `sampling` are the fields of SamplerParams; for n_logits see stream.hpp."""
        check_fork()
        cdef Request request
        request.prompt = move(prompt)
        request.max_tokens = max_tokens
        request.called_us = called_us
        request.timeout_us = timeout_us
        request.delay_us = delay_us
        request.buffer_size = buffer_size
        request.stops = move(stops)
        request.n_top = n_top
        request.min_tokens = min_tokens
        request.sampling = to_sampling(sampling)
        if chat is not None:
            request.preserved = chat.shared.get().preserved()
            amend_by_chat(request, chat.shared)
        for lora, scale in loras:
            if scale == 0:
                continue  # it is the same as without, and may share with it
            request.loras.push_back(pair[shared_ptr[CLora], float]((<Lora?> lora).shared, <float> scale))
        sort_loras(request)
        request.n_logits = n_logits
        cdef Stream stream = Stream.__new__(Stream)
        stream.shared = make_shared[CStream](self.shared, request, self.longest_piece)
        self.shared.get().submit(stream.shared)
        return stream


cdef Sampling to_sampling(dict values) except *:
    cdef Sampling s
    s.seed = values["seed"]
    s.temperature = values["temperature"]
    s.dynatemp_range = values["dynatemp_range"]
    s.dynatemp_exponent = values["dynatemp_exponent"]
    s.top_k = values["top_k"]
    s.min_keep = values["min_keep"]
    s.top_p = values["top_p"]
    s.min_p = values["min_p"]
    s.typical_p = values["typical_p"]
    s.top_n_sigma = values["top_n_sigma"]
    s.xtc_probability = values["xtc_probability"]
    s.xtc_threshold = values["xtc_threshold"]
    s.penalty_last_n = values["penalty_last_n"]
    s.repeat_penalty = values["repeat_penalty"]
    s.frequency_penalty = values["frequency_penalty"]
    s.presence_penalty = values["presence_penalty"]
    s.dry_multiplier = values["dry_multiplier"]
    s.dry_base = values["dry_base"]
    s.dry_allowed_length = values["dry_allowed_length"]
    s.dry_penalty_last_n = values["dry_penalty_last_n"]
    for breaker in values["dry_sequence_breakers"]:
        s.dry_sequence_breakers.push_back(<string> (<str> breaker).encode())
    s.mirostat = values["mirostat"]
    s.mirostat_tau = values["mirostat_tau"]
    s.mirostat_eta = values["mirostat_eta"]
    s.ignore_eos = values["ignore_eos"]
    for name in values["samplers"]:
        s.samplers.push_back(<string> (<str> name).encode())
    s.adaptive_target = values["adaptive_target"]
    s.adaptive_decay = values["adaptive_decay"]
    s.grammar = (<str> values["grammar"]).encode()
    for token, bias in values["logit_bias"]:
        s.logit_bias.push_back(pair[int32_t, float](<int32_t> token, <float> bias))
    return s
