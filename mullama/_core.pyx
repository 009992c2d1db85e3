# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""The GIL's side of the C++ engine: extension types that convert and guard, and decide nothing.

What a thing does is said in the header under ``_native/`` that declares it. The GIL is let go where C may take long:
loading, making and running an engine, tokenising, waiting. After ``fork`` a child that inherited a model cannot use it
(the threads that serve it were not copied): every call then raises ForkError, and memory is left as it is.
"""

import os

cimport cython
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.unicode cimport PyUnicode_DecodeUTF8
from cython.operator cimport dereference as deref
from libc.errno cimport EINTR, errno
from libcpp.memory cimport make_shared
from libcpp.utility cimport move

from mullama._records import Outcome, TokenData
from mullama.errors import ClosedError, ForkError, QueueFullError


cdef extern from "poll.h" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *, unsigned long, int timeout_ms)
    short POLLIN


cdef extern from *:
    """
    #include "_native/chat/chat.hpp"
    #include "_native/engine/stream.hpp"
    #include "_native/sampling/sampling.hpp"

    namespace mullama {
    // What Cython has no words for.
    static void amend_by_chat(Sampling & sampling, const Chat & chat) { chat.amend(sampling.params()); }
    static StopSignal stop_signal(std::shared_ptr<Stream> stream) {
        return [stream] { return stream->stopped(); };
    }
    static const char * const renders_too_long = "rendering took longer than 5 seconds of processor time";
    static std::shared_ptr<Templates> make_templates(std::shared_ptr<llama_model> model, const ModelFacts & facts,
                                                     const std::string & text, const StopSignal & stop) {
        return limited(to_render, stop, renders_too_long, [&] { return std::make_shared<Templates>(model, facts, text); });
    }
    static std::shared_ptr<Chat> make_chat(std::shared_ptr<Templates> templates, const ChatRequest & request,
                                           const StopSignal & stop) {
        return limited(to_render, stop, renders_too_long, [&] { return std::make_shared<Chat>(templates, request); });
    }
    static void submit(Stream & stream, Request & request) { stream.submit(std::move(request)); }
    }
    """
    void amend_by_chat "mullama::amend_by_chat"(Sampling &, const CChat &) except +
    StopSignal stop_signal "mullama::stop_signal"(shared_ptr[CStream]) except +
    shared_ptr[CTemplates] make_templates "mullama::make_templates"(shared_ptr[llama_model], const ModelFacts &, const string &,
                                                                    const StopSignal &) except +raise_error nogil
    shared_ptr[CChat] make_chat "mullama::make_chat"(shared_ptr[CTemplates], const ChatRequest &,
                                                     const StopSignal &) except +raise_error nogil
    void submit "mullama::submit"(CStream &, CRequest &) except +raise_error


# ---------------------------------------------------------------------------------------------------------- the process

cdef bint used = False      # a model was loaded in this process, or in the one that it was forked from
cdef bint forked = False    # in the latter


def _after_fork_in_child():
    global forked
    forked = used


class GrammarError(ValueError):
    """A grammar, or a JSON schema, that llama.cpp cannot follow."""


class Stopped(Exception):
    """What was prepared is not wanted any more: its stream was cancelled, closed, or is late."""


def _queue_full(length):
    return QueueFullError(
        f"{length} requests wait already, and max_queue allows no more",
        length=length,
        hint="Try again when some have ended, or make the context with a larger max_queue.",
    )


closed_error = <PyObject *> ClosedError
grammar_error = <PyObject *> GrammarError
stopped_error = <PyObject *> Stopped
queue_full = <PyObject *> _queue_full
os.register_at_fork(after_in_child=_after_fork_in_child)
start_llama_cpp()


cdef int check_fork() except -1:
    if forked:
        raise ForkError(
            "this process was forked from one that had loaded a model, and a fork copies none of its threads",
            hint="load the model after the fork, or start processes with the 'spawn' method",
        )
    return 0


def version():
    """The version of mullama that this was compiled for."""
    return MULLAMA_VERSION.decode("ascii")


def llama_cpp_build():
    """Build number and commit of the llama.cpp that is linked in."""
    return llama_build_number(), llama_commit().decode("ascii", "replace")


def system_info():
    """The processor features that ggml was built for, in its own words."""
    return llama_print_system_info().decode("utf-8", "replace")


def take_log_lines():
    """The log lines since the last call, as (level, text): 1 debug, 2 info, 3 warning, 4 error."""
    if forked:
        return []  # a thread may have held the store's lock when this process was made
    return [(line.level, line.text.decode("utf-8", "replace")) for line in take_log()]


# ---------------------------------------------------------------------------------------------------------- the model

cdef class _Progress:
    """A load's progress callback, and what it raised."""
    cdef object callback
    cdef object raised

    def __cinit__(self, callback):
        self.callback = callback


cdef cbool on_load_progress(float fraction, void * data) noexcept with gil:
    progress = <_Progress> data
    try:
        return progress.callback(fraction) is not False
    except BaseException as e:
        progress.raised = e
        return False


@cython.final
cdef class Model:
    def __init__(self, bytes path not None, *, int n_gpu_layers, bint use_mmap, bint use_mlock, bint vocab_only,
                 on_progress=None):
        global used
        check_fork()
        used = True
        cdef LoadParams params
        params.n_gpu_layers = n_gpu_layers
        params.use_mmap = use_mmap
        params.use_mlock = use_mlock
        params.vocab_only = vocab_only
        cdef _Progress progress = _Progress(on_progress)
        if on_progress is not None:
            params.on_progress = on_load_progress
            params.on_progress_data = <void *> progress
        cdef string name = path
        cdef shared_ptr[llama_model] loaded
        try:
            with nogil:
                loaded = load_model(name, params, self.facts)
                self.longest_piece = longest_piece(loaded.get())
        except RuntimeError:
            if progress.raised is not None:
                raise progress.raised
            raise
        self.shared = move(loaded)
        self.vocab = llama_model_get_vocab(self.shared.get())
        self.vocab_only = vocab_only

    def __dealloc__(self):
        if forked:
            new shared_ptr[llama_model](self.shared)  # leaked: its destructor would wait for threads that are not there

    cdef int check(self) except -1:
        if self.shared.get() == NULL:
            raise ValueError("the model is not loaded")
        return check_fork()

    def tokenize(self, bytes text not None, bint add_special, bint parse_special, Pending pending=None):
        """Token ids. For something pending, it ends early with Stopped."""
        self.check()
        cdef string data = text
        cdef vector[int32_t] tokens
        cdef StopSignal stop = stop_of(pending)
        with nogil:
            tokens = tokenize(self.shared.get(), data, add_special, parse_special, stop)
        return tokens

    def min_token_count(self, size_t n_bytes):
        """How many tokens a text of so many bytes has at least; a careful estimate without reading it."""
        cdef int kind = llama_vocab_type(self.vocab)
        return n_bytes // (4 * self.longest_piece) if kind == 1 or kind == 2 else 0  # SPM and BPE lose no bytes

    def detokenize(self, vector[int32_t] tokens, bint special):
        self.check()
        cdef int32_t n = llama_vocab_n_tokens(self.vocab), token
        for token in tokens:
            if not 0 <= token < n:
                raise IndexError(token)
        cdef string data
        with nogil:
            data = detokenize(self.shared.get(), tokens, special)
        return <bytes> data

    def is_eog(self, int32_t token):
        self.check()
        if not 0 <= token < llama_vocab_n_tokens(self.vocab):
            raise IndexError(token)
        return llama_vocab_is_eog(self.vocab, token)

    def metadata(self):
        self.check()
        return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
                for key, value in metadata(self.shared.get())}

    def chat_template(self):
        self.check()
        cdef const char * text = llama_model_chat_template(self.shared.get(), NULL)
        return None if text == NULL else text.decode("utf-8", "replace")

    @property
    def infill_tokens(self):
        """Ids of the prefix, suffix and middle marks; -1 where the vocabulary has none."""
        self.check()
        return llama_vocab_fim_pre(self.vocab), llama_vocab_fim_suf(self.vocab), llama_vocab_fim_mid(self.vocab)

    @property
    def description(self):
        self.check()
        return description(self.shared.get()).decode("utf-8", "replace")

    @property
    def can_generate(self):
        """A decoder that predicts the next token of a vocabulary, with its weights loaded."""
        self.check()
        cdef const llama_model * model = self.shared.get()
        return (not self.vocab_only and llama_model_has_decoder(model) and not llama_model_has_encoder(model)
                and not llama_model_is_diffusion(model) and self.has_vocabulary)

    @property
    def has_vocabulary(self):
        """Some models are fed by others and know token ids only."""
        self.check()
        return llama_vocab_type(self.vocab) != 0

    @property
    def n_ctx_train(self):
        self.check()
        return llama_model_n_ctx_train(self.shared.get())

    @property
    def n_embd(self):
        self.check()
        return llama_model_n_embd(self.shared.get())

    @property
    def n_vocab(self):
        self.check()
        return llama_vocab_n_tokens(self.vocab)

    @property
    def n_layer(self):
        self.check()
        return llama_model_n_layer(self.shared.get())

    @property
    def n_head(self):
        self.check()
        return 0 if self.vocab_only else llama_model_n_head(self.shared.get())  # llama.cpp aborts where it knows of no layer

    @property
    def n_params(self):
        self.check()
        return llama_model_n_params(self.shared.get())

    @property
    def size(self):
        self.check()
        return llama_model_size(self.shared.get())

    @property
    def token_bos(self):
        self.check()
        return llama_vocab_bos(self.vocab)

    @property
    def token_eos(self):
        self.check()
        return llama_vocab_eos(self.vocab)


cdef StopSignal stop_of(Pending pending) except *:
    cdef StopSignal none
    return none if pending is None else stop_signal(pending.shared)


def grammar_of_schema(bytes schema not None, Pending pending=None):
    """The GBNF grammar of a JSON schema. Raises GrammarError where llama.cpp cannot make one."""
    cdef string text = schema
    cdef string grammar
    cdef StopSignal stop = stop_of(pending)
    with nogil:
        grammar = native_grammar_of_schema(text, stop)
    return grammar.decode("utf-8", "replace")


@cython.final
cdef class Lora:
    def __init__(self, Model model not None, bytes path not None):
        model.check()
        cdef string name = path
        cdef shared_ptr[CLora] loaded
        with nogil:
            loaded = make_shared[CLora](model.shared, name)
        self.shared = move(loaded)

    def __dealloc__(self):
        if forked:
            new shared_ptr[CLora](self.shared)  # leaked, as the model


# ---------------------------------------------------------------------------------------------------------- the text

@cython.final
cdef class Text:
    """The engine's assembly of bytes to text, by itself: for those who test it or feed it otherwise."""

    def __init__(self, vector[string] stops):
        del self.text
        self.text = new CText(stops)

    def __dealloc__(self):
        del self.text

    def feed(self, bytes data not None):
        """(text that is decided now, index of the stop string that was completed or -1)"""
        cdef string out
        cdef int stop = self.text.feed(<const char *> data, len(data), out)
        return out.decode("utf-8"), stop

    def finish(self):
        cdef string out
        cdef int stop = self.text.finish(out)
        return out.decode("utf-8"), stop


include "_core_engine.pxi"
include "_core_stream.pxi"
include "_core_chat.pxi"
include "_core_vectors.pxi"
