# What the core calls of C++ and of llama.h, and nothing else; meanings are in the headers under _native/.
cimport cython
from cpython.object cimport PyTypeObject
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr
from libcpp.pair cimport pair
from libcpp.string cimport string
from libcpp.vector cimport vector

ctypedef vector[int32_t] TokenList


cdef extern from "Python.h":
    # str.__new__ of a class that is derived from it, without the lookups
    object new_str "PyUnicode_Type.tp_new"(PyTypeObject *, object args, void *)


cdef extern from *:
    """
    static int set_slot(PyObject * slot, PyObject * object, PyObject * value) {
        return Py_TYPE(slot)->tp_descr_set(slot, object, value);
    }
    """
    # what a descriptor of __slots__ does, past a __setattr__ that forbids it
    int set_slot(object slot, object instance, object value) except -1


cdef extern from "llama.h" nogil:
    cdef struct llama_model
    cdef struct llama_vocab
    const llama_vocab * llama_model_get_vocab(const llama_model *)
    int32_t llama_model_n_ctx_train(const llama_model *)
    int32_t llama_model_n_embd(const llama_model *)
    int32_t llama_model_n_layer(const llama_model *)
    int32_t llama_model_n_head(const llama_model *)
    uint64_t llama_model_n_params(const llama_model *)
    uint64_t llama_model_size(const llama_model *)
    cbool llama_model_has_encoder(const llama_model *)
    cbool llama_model_has_decoder(const llama_model *)
    cbool llama_model_is_diffusion(const llama_model *)
    const char * llama_model_chat_template(const llama_model *, const char * name)
    int32_t llama_vocab_n_tokens(const llama_vocab *)
    int32_t llama_vocab_bos(const llama_vocab *)
    int32_t llama_vocab_eos(const llama_vocab *)
    int32_t llama_vocab_fim_pre(const llama_vocab *)
    int32_t llama_vocab_fim_suf(const llama_vocab *)
    int32_t llama_vocab_fim_mid(const llama_vocab *)
    int llama_vocab_type(const llama_vocab *)
    cbool llama_vocab_is_eog(const llama_vocab *, int32_t token)
    const char * llama_print_system_info()


cdef extern from *:
    const char * MULLAMA_VERSION  # setup.py's flag


cdef extern from "build-info.h" nogil:
    int llama_build_number()
    const char * llama_commit()


cdef extern from "_native/model/log.hpp" namespace "mullama" nogil:
    cdef cppclass LogLine:
        int level
        string text
    void start_llama_cpp() except +
    vector[LogLine] take_log() except +


cdef extern from *:
    """
    #include "_native/engine/engine.hpp"

    // The classes, once the module is there; queue_full makes an error of a length.
    static PyObject * closed_error = nullptr, * grammar_error = nullptr, * stopped_error = nullptr, * queue_full = nullptr;

    static void raise_error() {
        try {
            throw;
        } catch (const mullama::Closed & e) {
            PyErr_SetString(closed_error, e.what());
        } catch (const mullama::GrammarError & e) {
            PyErr_SetString(grammar_error, e.what());
        } catch (const mullama::Stopped & e) {
            PyErr_SetString(stopped_error, e.what());
        } catch (const mullama::QueueFull & e) {
            PyObject * const error = PyObject_CallFunction(queue_full, "L", (long long) e.length);
            if (error != nullptr) PyErr_SetObject((PyObject *) Py_TYPE(error), error);
            Py_XDECREF(error);
        } catch (const std::bad_alloc &) {
            PyErr_NoMemory();
        } catch (const std::exception & e) {
            PyErr_SetString(PyExc_RuntimeError, e.what());
        }
    }
    """
    void raise_error()
    PyObject * closed_error
    PyObject * grammar_error
    PyObject * stopped_error
    PyObject * queue_full


cdef extern from "_native/checks/work_limit.hpp" namespace "mullama" nogil:
    cdef cppclass StopSignal:
        pass


cdef extern from "_native/checks/gguf_check.hpp" namespace "mullama" nogil:
    cdef cppclass ModelFacts:
        pass


cdef extern from "_native/model/model.hpp" namespace "mullama" nogil:
    ctypedef cbool (*llama_progress_callback)(float, void *) noexcept
    cdef cppclass LoadParams:
        int32_t n_gpu_layers
        cbool use_mmap
        cbool use_mlock
        cbool vocab_only
        llama_progress_callback on_progress
        void * on_progress_data
    shared_ptr[llama_model] load_model(const string & path, const LoadParams &, ModelFacts &) except +
    vector[int32_t] tokenize(const llama_model *, const string &, cbool add_special, cbool parse_special, const StopSignal &) except +raise_error
    string detokenize(const llama_model *, const vector[int32_t] &, cbool special) except +
    size_t longest_piece(const llama_model *) except +
    vector[pair[string, string]] metadata(const llama_model *) except +
    string description(const llama_model *) except +


cdef extern from "_native/engine/notifier.hpp" namespace "mullama" nogil:
    cdef cppclass CNotifier "mullama::Notifier":
        CNotifier() except +
        int fd()
        vector[uint64_t] drain() except +
        void wake()


cdef extern from "_native/engine/ring.hpp" namespace "mullama" nogil:
    cdef cppclass Candidate:
        int32_t token
        float logprob
    cdef cppclass Record:
        int32_t token
        float logprob
        int32_t finish
        uint32_t n_top
        uint32_t n_bytes
        const Candidate * top()
        const char * text()
    cdef cppclass PoppedRecord:
        const Record & get()


cdef extern from "_native/sampling/sampling.hpp" namespace "mullama" nogil:
    cdef cppclass Sampling:
        void set(const string & name, double value) except +
        void set(const string & name, const vector[string] & texts) except +
        void set_grammar(const string & gbnf) except +
        void add_bias(int32_t token, float bias) except +


cdef extern from "_native/sampling/sampler.hpp" namespace "mullama" nogil:
    string native_grammar_of_schema "mullama::grammar_of_schema"(const string & schema, const StopSignal &) except +raise_error


cdef extern from "_native/model/special_tokens.hpp" namespace "mullama" nogil:
    cdef cppclass Part "mullama::SpecialTokens::Part":
        int32_t token
        size_t begin, end
    cdef cppclass SpecialTokens:
        vector[Part] split(const string & text) except +


cdef extern from "_native/model/lora.hpp" namespace "mullama" nogil:
    cdef cppclass CLora "mullama::Lora":
        CLora(shared_ptr[llama_model] model, const string & path) except +


cdef extern from "_native/chat/chat.hpp" namespace "mullama" nogil:
    cdef cppclass CTemplates "mullama::Templates":
        cbool supports_thinking() except +
        const SpecialTokens & specials()
    cdef cppclass ChatRequest:
        string messages, tools, tool_choice
        cbool parallel_tool_calls
        string grammar, json_schema
        cbool thinking
        string reasoning_format
        vector[pair[string, string]] arguments
    cdef cppclass ChatDelta:
        string reasoning, content
        int64_t call
        string call_id, call_name, call_arguments
    cdef cppclass CChat "mullama::Chat":
        const string & prompt()
        vector[int32_t] prompt_tokens(const StopSignal &) except +raise_error
        const vector[string] & stops()
        vector[int32_t] preserved() except +
        vector[ChatDelta] feed(const string & text, int32_t token) except +
        vector[ChatDelta] flush() except +
        vector[ChatDelta] finish() except +
        size_t n_parsed()


cdef extern from "_native/text/text.hpp" namespace "mullama" nogil:
    cdef cppclass CText "mullama::Text":
        CText(vector[string] stops) except +
        int feed(const char * data, size_t n, string & out) except +
        int finish(string & out) except +


cdef extern from "_native/engine/request.hpp" namespace "mullama" nogil:
    cdef cppclass CRequest "mullama::Request":
        vector[int32_t] prompt
        int64_t max_tokens, delay_us
        uint32_t buffer_size
        uint32_t n_top
        int64_t min_tokens
        vector[string] stops
        vector[int32_t] preserved
        vector[pair[shared_ptr[CLora], float]] loras
        uint32_t n_logits
        size_t longest_piece
        void finish(const llama_model *, Sampling &, const StopSignal &) except +raise_error


cdef extern from "_native/engine/stream.hpp" namespace "mullama" nogil:
    cdef cppclass Finish:  # an enum class; cast to int
        pass
    cdef cppclass Fault:   # likewise
        pass
    const Finish FINISH_ERROR "mullama::Finish::error", FINISH_TIMEOUT "mullama::Finish::timeout"
    const Fault FAULT_NONE "mullama::Fault::none", FAULT_PREPARATION "mullama::Fault::preparation"
    cdef cppclass CppOutcome "mullama::Outcome":
        Finish finish
        Fault fault
        string message
        int stop
        vector[int32_t] tokens
        vector[float] logprobs
        vector[Candidate] top
        string text
        int64_t cached_tokens, called_us, admitted_us, first_us, last_us, ended_us
    cdef cppclass CStream "mullama::Stream":
        CStream(shared_ptr[CEngine] engine, int64_t called_us, int64_t timeout_us) except +
        cbool stopped()
        void submit(CRequest) except +raise_error
        void fail(Finish, Fault, const string & message) except +
        cbool pop(PoppedRecord &) except +
        cbool ended()
        cbool ready()
        uint32_t buffered()
        cbool paused()
        cbool cancel()
        int64_t generated()
        double rate() except +
        CppOutcome outcome() except +
        vector[float] take_logits()
        void arm(shared_ptr[CNotifier] notifier, uint64_t key) except +
        void disarm()
    int64_t now_us()


cdef extern from "<atomic>" nogil:
    cdef cppclass AtomicBool "std::atomic<bool>":
        void store(cbool)
        cbool load()


cdef extern from "_native/engine/embed.hpp" namespace "mullama" nogil:
    cdef cppclass CEmbedder "mullama::Embedder":
        CEmbedder(shared_ptr[llama_model] model, const ModelFacts &, uint32_t n_ctx, int32_t pooling, int32_t n_threads) except +
        uint32_t n_ctx()
        int32_t n_embd()
        vector[float] embed(const vector[TokenList] & texts, const AtomicBool & stop) except +raise_error
        void close()


cdef extern from "_native/engine/engine.hpp" namespace "mullama" nogil:
    cdef cppclass EngineParams:
        uint32_t n_ctx, n_cells, n_batch, n_ubatch, n_seq_max
        int32_t n_threads, n_threads_batch
        int64_t max_queue
        cbool reuse_prefix
        ModelFacts facts
    cdef cppclass EngineStats:
        int32_t slots, busy, queued, paused
        int64_t max_queue, cells, cached_cells, steps, tokens_in, tokens_out
    cdef cppclass CEngine "mullama::Engine":
        CEngine(shared_ptr[llama_model] model, const EngineParams &) except +
        int64_t n_ctx()
        int32_t n_batch()
        int32_t n_threads()
        cbool generates()
        void run()
        void open(shared_ptr[CStream]) except +raise_error
        void clear_cache() except +raise_error
        string save_state() except +raise_error
        int64_t load_state(const string & state) except +raise_error
        void stop()
        void release()
        EngineStats stats()


@cython.final
cdef class Model:
    cdef shared_ptr[llama_model] shared   # also held by each engine made of it
    cdef const llama_vocab * vocab        # lives as long as the model
    cdef size_t longest_piece             # bytes; what a record must hold
    cdef ModelFacts facts                 # of its file, for the engine
    cdef readonly bint vocab_only
    cdef int check(self) except -1


@cython.final
cdef class Notifier:
    cdef shared_ptr[CNotifier] shared     # also held by the streams that are armed with it


@cython.final
cdef class Engine:
    cdef shared_ptr[CEngine] shared       # also held by each stream of it


@cython.final
cdef class Stream:
    cdef shared_ptr[CStream] shared       # also held by the engine until the stream has ended
    cdef readonly int finish              # why it ended, for who has popped its last record; 0 before that


@cython.final
cdef class Pending:
    cdef shared_ptr[CStream] shared       # also held by the Stream


@cython.final
cdef class Request:
    cdef CRequest * request               # owned; NULL once it is submitted


@cython.final
cdef class Text:
    cdef CText * text                     # owned


@cython.final
cdef class Lora:
    cdef shared_ptr[CLora] shared         # also held by the streams that use it


@cython.final
cdef class Templates:
    cdef shared_ptr[CTemplates] shared    # also held by the chats made of it


@cython.final
cdef class Chat:
    cdef shared_ptr[CChat] shared


@cython.final
cdef class Stop:
    cdef AtomicBool flag


@cython.final
cdef class Embedder:
    cdef shared_ptr[CEmbedder] shared
