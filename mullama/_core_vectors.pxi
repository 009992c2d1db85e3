# The extension types of embeddings, and of what stops them; included by _core.pyx.

@cython.final
cdef class Stop:
    """A word to a thread that works without the GIL: as a threading.Event that no one waits for."""

    def set(self):
        self.flag.store(True)

    def is_set(self):
        return self.flag.load()


@cython.final
cdef class Embedder:
    def __init__(self, Model model not None, *, uint32_t n_ctx, int32_t pooling, int32_t n_threads):
        model.check()
        cdef shared_ptr[CEmbedder] made
        with nogil:
            made = make_shared[CEmbedder](model.shared, model.facts, n_ctx, pooling, n_threads)
        self.shared = move(made)

    def __dealloc__(self):
        if forked:
            new shared_ptr[CEmbedder](self.shared)  # leaked, as the model

    @property
    def n_ctx(self):
        return self.shared.get().n_ctx()

    @property
    def n_embd(self):
        return self.shared.get().n_embd()

    def embed(self, vector[TokenList] texts, Stop stop not None):
        """Rows of n_embd float32, one for each text, as bytes. RuntimeError where `stop` is set, ClosedError after close."""
        check_fork()
        cdef CEmbedder * embedder = self.shared.get()
        cdef vector[float] rows
        with nogil:
            rows = embedder.embed(texts, stop.flag)
        return (<char *> rows.data())[:rows.size() * sizeof(float)]

    def close(self):
        """End what runs, and wait for it. Nothing can be embedded any more."""
        if not forked:
            with nogil:
                self.shared.get().close()
