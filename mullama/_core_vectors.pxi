# The extension type of embeddings; included by _core.pyx.

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

    def embed(self, vector[TokenList] texts):
        """Rows of n_embd float32, one for each text, as bytes."""
        check_fork()
        cdef CEmbedder * embedder = self.shared.get()
        cdef vector[float] rows
        with nogil:
            rows = embedder.embed(texts)
        return (<char *> rows.data())[:rows.size() * sizeof(float)]
