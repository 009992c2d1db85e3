# The reader's side of one generation, and the clock of its times; included by _core.pyx.

cdef object token_id_slot = TokenData.token_id, is_final_slot = TokenData.is_final
cdef object logprob_slot = TokenData.logprob, top_logprobs_slot = TokenData.top_logprobs


cdef tuple candidates(const Candidate * first, size_t n):
    return tuple([(first[i].token, first[i].logprob) for i in range(n)])


@cython.final
cdef class Stream:
    """One generation, read by one reader at a time. Dropping it cancels it."""

    def __dealloc__(self):
        if self.shared.get() == NULL:
            return
        if forked:
            new shared_ptr[CStream](self.shared)  # leaked, as the model
        elif not self.shared.get().ended():
            self.shared.get().cancel()

    def pending(self):
        """The preparer's handle on it; once, right after it was opened."""
        check_fork()
        cdef Pending pending = Pending.__new__(Pending)
        pending.shared = self.shared
        return pending

    def pop(self):
        """The oldest record, None where there is none; its candidates, as (token, logprob), are its `top_logprobs` as yet."""
        check_fork()
        cdef PoppedRecord popped
        if not self.shared.get().pop(popped):
            return None
        cdef const Record * record = &popped.get()
        if record.finish:
            self.finish = record.finish
        # Whatever makes objects may run finalizers, and these may let other threads run: the ring is left alone from here on.
        cdef object token = new_str(<PyTypeObject *> TokenData, (PyUnicode_DecodeUTF8(record.text(), record.n_bytes, NULL),), NULL)
        set_slot(token_id_slot, token, record.token)
        set_slot(is_final_slot, token, record.finish != 0)
        set_slot(logprob_slot, token, record.logprob)
        set_slot(top_logprobs_slot, token, candidates(record.top(), record.n_top) if record.n_top else ())
        return token

    def arm(self, Notifier notifier not None, uint64_t key):
        """Have the notifier list the key at the next record or at the end. True: there is one now, so nothing is to be waited for."""
        check_fork()
        if self.shared.get().ready():
            return True
        self.shared.get().arm(notifier.shared, key)
        return self.shared.get().ready()

    def disarm(self):
        self.shared.get().disarm()

    def wait(self, Notifier notifier not None):
        """Block until the notifier is notified, letting the GIL go. Signal handlers run meanwhile, and may raise out of here."""
        check_fork()
        cdef pollfd entry
        entry.fd = notifier.shared.get().fd()
        entry.events = POLLIN
        cdef int n
        while True:
            with nogil:
                n = poll(&entry, 1, 200)  # bounded, because a signal may interrupt another thread instead of this one
            if n > 0 or self.shared.get().ready():  # whoever closes the stream in another thread may drain the notifier
                break
            PyErr_CheckSignals()
        notifier.shared.get().drain()
        if self.shared.get().ended():
            notifier.shared.get().wake()  # for good: whoever else waits here, to read or to close, sees the end too

    def cancel(self):
        check_fork()
        return self.shared.get().cancel()

    def outcome(self):
        """How it went so far; see Outcome in _records.py."""
        check_fork()
        cdef CppOutcome o = self.shared.get().outcome()
        return Outcome(<int> o.finish, <int> o.fault, o.message.decode("utf-8", "replace"), o.stop, tuple(o.tokens),
                       tuple(o.logprobs), candidates(o.top.data(), o.top.size()), o.text.decode("utf-8", "replace"),
                       o.cached_tokens, o.called_us, o.admitted_us, o.first_us, o.last_us, o.ended_us)

    def take_logits(self):
        """Rows of n_vocab float32, as bytes; once."""
        check_fork()
        cdef vector[float] rows = self.shared.get().take_logits()
        return PyByteArray_FromStringAndSize(<char *> rows.data(), rows.size() * sizeof(float))

    @property
    def ended(self):
        return self.shared.get().ended()

    @property
    def ready(self):
        check_fork()
        return self.shared.get().ready()

    @property
    def buffered(self):
        return self.shared.get().buffered()

    @property
    def paused(self):
        return self.shared.get().paused()

    @property
    def generated(self):
        return self.shared.get().generated()

    @property
    def rate(self):
        check_fork()
        return self.shared.get().rate()


def clock_us():
    """The clock of outcome()'s times."""
    return now_us()
