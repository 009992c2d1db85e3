// Rendering a chat and parsing its answer with llama.cpp's common library; see chat.hpp.
#include "chat/chat.hpp"

#include <algorithm>
#include <new>
#include <optional>
#include <random>
#include <stdexcept>
#include <utility>

#include "checks/abort_guard.hpp"
#include "chat/plain_text.hpp"
#include "chat/prompt.hpp"
#include "chat/session.hpp"
#include "chat/tools.hpp"
#include "sampling/sampler.hpp"

// llama.cpp's
#include <chat.h>
#include <common.h>
#include <jinja/lexer.h>
#include <jinja/parser.h>

namespace mullama {

namespace {

// Templates, schemas and parsers throw whatever the standard library has, and assert: all of that comes out as one type.
template <typename Work>
auto guarded(Work && work) {
    try {
        AbortGuard guard;
        return work();
    } catch (const std::bad_alloc &) {
        throw std::runtime_error("there is not enough memory for it");
    } catch (const std::exception & e) {
        const std::string why = e.what();
        throw std::runtime_error(why == "std::exception" ? "llama.cpp gave up and did not say why" : why);
    } catch (...) {
        throw std::runtime_error("llama.cpp gave up and did not say why");
    }
}

// llama.cpp walks through JSON by recursion, and what is nested deep enough would overflow the stack of this thread.
void check_depth(const char * name, const std::string & json) {
    constexpr int most = 256;
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < json.size(); ++i) {
        const char c = json[i];
        if (quoted) {
            if (c == '\\') ++i;
            if (c == '"') quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++depth > most) throw std::invalid_argument(std::string(name) + " are nested too deeply");
        } else if (c == ']' || c == '}') {
            --depth;
        }
    }
}

// What is new of a field. What was told stays told: a parser that sees more may take back the end of a field (it could begin
// a mark) and give it again later, but may not change it.
std::string grown(std::string & told, const std::string & now) {
    if (told.compare(0, std::min(told.size(), now.size()), now, 0, std::min(told.size(), now.size())) != 0) {
        throw std::runtime_error("what comes now changes the meaning of what came before");
    }
    if (now.size() <= told.size()) return {};
    std::string delta = now.substr(told.size());
    told += delta;
    return delta;
}

// Nine letters and digits: the only form that each template accepts when the message comes back (Mistral's insist).
std::string new_call_id() {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    std::random_device random;
    std::string id;
    for (int i = 0; i < 9; ++i) id += letters[random() % (sizeof letters - 1)];
    return id;
}

}  // namespace

void Templates::Free::operator()(common_chat_templates * templates) const { common_chat_templates_free(templates); }

Templates::Templates(std::shared_ptr<llama_model> model, const ModelFacts & facts, const std::string & text)
    : model_(std::move(model)), specials_(llama_model_get_vocab(model_.get()), facts.control_tokens) {
    guarded([&] {
        const char * own = llama_model_chat_template(model_.get(), nullptr);
        if (text.empty() && own == nullptr) throw std::invalid_argument("the model has no chat template");
        const std::string source = text.empty() ? own : text;
        // Parsed once here only for the sake of its error: llama.cpp throws it on as a nameless std::exception.
        if (source != "chatml") jinja::parse_from_tokens(jinja::lexer().tokenize(source));
        templates_.reset(common_chat_templates_init(model_.get(), text).release());
    });
}

Templates::~Templates() = default;

bool Templates::supports_thinking() const {
    return guarded([this] { return common_chat_templates_support_enable_thinking(templates_.get()); });
}

ToolSupport Templates::tools() const {
    const std::lock_guard lock(mutex_);
    if (!tools_) tools_ = tool_support(templates_.get());
    return tools_.value_or(ToolSupport{true, true, true});  // if it is for the template to refuse them, it will
}

constexpr size_t max_readings = 256;  // of each character of an answer, on average

struct Chat::State {
    struct Call {
        bool announced = false;  // its id and name were told
        std::string name, arguments;
    };

    std::shared_ptr<const Templates> templates;
    Session session;
    std::optional<Prompt> prompt;
    std::string user_grammar;        // where the template's handler left it to us
    std::string reasoning, content;  // what was told of the message
    std::vector<Call> calls;
    bool finished = false;

    PlainText plain;
    PlainText::Kind within = PlainText::none;  // what the answer is in the middle of
    std::string answer;              // all of it, behind what the prompt began of it
    std::string held;                // its end, where it may be the beginning of a mark
    common_chat_input unread;        // of it, by the session
    size_t n_parsed = 0;
    bool waits = false;              // some of it is unread because reading would cost too much as yet

    std::vector<ChatDelta> read();
    void look_ahead(const std::string & text, const ChatDelta & said);
    std::vector<ChatDelta> news(bool whole);
};

namespace {

// What the template comes to, whatever it knows of tools. `inputs` become what it was given.
common_chat_params apply(const Templates & templates, common_chat_templates_inputs & inputs) {
    const auto has_calls = [](const common_chat_msg & message) { return !message.tool_calls.empty() || message.role == "tool"; };
    const bool history = std::any_of(inputs.messages.begin(), inputs.messages.end(), has_calls);
    const bool tools = !inputs.tools.empty();
    const auto support = tools || history ? templates.tools() : ToolSupport{true, true, true};
    const bool written = (tools && !support.calls) || (history && !support.history);
    const auto asked = inputs;
    if (written) write_calls(inputs);
    if (tools && (written || !support.told)) describe_tools(inputs, written);
    if (written) inputs.tools.clear();
    auto applied = common_chat_templates_apply(templates.get(), inputs);
    check_shown(templates.get(), inputs, applied.prompt);
    if (tools && written) {
        read_calls(applied, asked);
    } else if (tools && asked.tool_choice == COMMON_CHAT_TOOL_CHOICE_REQUIRED) {
        applied.grammar = grammar_without_words(applied.parser);
    }
    return applied;
}

}  // namespace

Chat::Chat(std::shared_ptr<const Templates> templates, const ChatRequest & request) : state_(new State) {
    guarded([&] {
        const llama_vocab * vocab = llama_model_get_vocab(templates->model());
        check_depth("the messages", request.messages);
        check_depth("the tools", request.tools);
        check_depth("the levels of the schema", request.json_schema);
        common_chat_templates_inputs inputs;
        inputs.messages = common_chat_msgs_parse_oaicompat(common_json::parse(request.messages));
        for (const auto & message : inputs.messages) {
            for (const auto & call : message.tool_calls) check_depth("the arguments of a tool call", call.arguments);
        }
        if (!request.tools.empty()) inputs.tools = common_chat_tools_parse_oaicompat(common_json::parse(request.tools));
        inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(request.tool_choice);
        inputs.parallel_tool_calls = request.parallel_tool_calls;
        inputs.grammar = request.grammar;
        inputs.json_schema = request.json_schema;
        inputs.enable_thinking = request.thinking;
        inputs.reasoning_format = common_reasoning_format_from_name(request.reasoning_format);
        for (const auto & [name, value] : request.arguments) {
            check_depth("the template's arguments", value);
            inputs.chat_template_kwargs[name] = value;
            if (name == "enable_thinking") inputs.enable_thinking = value != "false";  // the parser must know of it too
        }
        inputs.add_bos = llama_vocab_get_add_bos(vocab);
        inputs.add_eos = llama_vocab_get_add_eos(vocab);
        auto applied = apply(*templates, inputs);
        state_->prompt.emplace(templates->model(), templates->specials(), templates->get(), inputs, applied.prompt);
        state_->session = Session(std::move(applied), vocab);
        // llama.cpp leaves a grammar to whoever samples, and some of its handlers know no schemas.
        state_->user_grammar = request.grammar;
        if (!request.json_schema.empty() && state_->session.applied().grammar.empty()) {
            state_->user_grammar = grammar_of_schema(request.json_schema);
        }
        state_->templates = std::move(templates);
        state_->plain = PlainText(state_->session.parser());
        state_->answer = state_->session.applied().generation_prompt;
    });
}

Chat::~Chat() = default;

const std::string & Chat::prompt() const { return state_->prompt->text(); }

std::vector<int32_t> Chat::prompt_tokens(const StopSignal & stop) const { return state_->prompt->tokens(stop); }

const std::vector<std::string> & Chat::stops() const { return state_->session.applied().additional_stops; }

std::vector<int32_t> Chat::preserved() const {
    common_params_sampling sampling;
    state_->session.amend(sampling, llama_model_get_vocab(state_->templates->model()));
    return {sampling.preserved_tokens.begin(), sampling.preserved_tokens.end()};
}

void Chat::amend(common_params_sampling & sampling) const {
    const llama_vocab * vocab = llama_model_get_vocab(state_->templates->model());
    state_->session.amend(sampling, vocab);
    if (!state_->user_grammar.empty()) {
        sampling.grammar = {COMMON_GRAMMAR_TYPE_USER, state_->user_grammar};
        sampling.grammar_lazy = false;
    }
    // A tool call that a model only thinks about must not wake the grammar of real ones.
    const auto & start = state_->session.applied().thinking_start_tag;
    const auto & ends = state_->session.applied().thinking_end_tags;
    if (!sampling.grammar_lazy || sampling.grammar.empty() || start.empty() || ends.empty()) return;
    sampling.reasoning_budget_start = common_tokenize(vocab, start, false, true);
    for (const auto & end : ends) sampling.reasoning_budget_end.push_back(common_tokenize(vocab, end, false, true));
    sampling.reasoning_budget_forced = sampling.reasoning_budget_end.front();
}

std::vector<ChatDelta> Chat::feed(const std::string & text, int32_t token) {
    if (text.empty()) return {};
    return guarded([&]() -> std::vector<ChatDelta> {
        State & s = *state_;
        if (s.finished) throw std::logic_error("the answer is finished");
        s.unread.append(text, token);
        s.answer += text;
        if (s.within != PlainText::none) {
            s.held += text;
            const size_t n = s.plain.plain(s.held);
            if (n == 0) return {};
            if (n != std::string::npos) {
                ChatDelta said;
                const bool content = s.within == PlainText::content;
                (content ? said.content : said.reasoning) = s.held.substr(0, n);
                (content ? s.content : s.reasoning).append(s.held, 0, n);
                s.held.erase(0, n);
                return {std::move(said)};
            }
        }
        // Where it has to be read again each time, it waits for some more of it: all reading is a multiple of the answer.
        s.waits = s.n_parsed > max_readings * s.answer.size();
        if (s.waits) return {};
        auto deltas = s.read();
        if (deltas.size() == 1) s.look_ahead(text, deltas.front());
        return deltas;
    });
}

std::vector<ChatDelta> Chat::flush() {
    return guarded([&]() -> std::vector<ChatDelta> {
        if (state_->held.empty() && !state_->waits) return {};
        return state_->read();
    });
}

std::vector<ChatDelta> Chat::finish() {
    return guarded([&] {
        if (std::exchange(state_->finished, true)) throw std::logic_error("the answer is finished");
        state_->n_parsed += state_->answer.size();
        state_->session.finish(std::exchange(state_->unread, {}));
        return state_->news(true);
    });
}

size_t Chat::n_parsed() const { return state_->n_parsed; }

// Has the session read all that there is of the answer.
std::vector<ChatDelta> Chat::State::read() {
    within = PlainText::none;
    held.clear();
    waits = false;
    n_parsed += answer.size();
    session.feed(std::exchange(unread, {}));
    return news(false);
}

// After a text of which all was said: may it be that the next ones need not be read? Asked only where it is likely, because
// the answer is read once more for it.
void Chat::State::look_ahead(const std::string & text, const ChatDelta & said) {
    const auto kind = said.content == text ? PlainText::content : said.reasoning == text ? PlainText::reasoning : PlainText::none;
    const auto & msg = session.message();
    const bool told_all = kind == PlainText::content ? content == msg.content : reasoning == msg.reasoning_content;
    if (kind != PlainText::none && told_all && plain.ends_in(session.parser(), answer, n_parsed) == kind) within = kind;
}

// A call's name may grow while it is parsed, and clients put fragments together: it is told once, when its arguments begin.
std::vector<ChatDelta> Chat::State::news(bool whole) {
    const common_chat_msg & now = session.message();
    if (now.tool_calls.size() < calls.size()) throw std::runtime_error("a tool call turned out to be none");
    calls.resize(now.tool_calls.size());
    std::vector<ChatDelta> deltas;
    ChatDelta said;
    said.reasoning = grown(reasoning, now.reasoning_content);
    said.content = grown(content, now.content);
    if (!said.reasoning.empty() || !said.content.empty()) deltas.push_back(std::move(said));
    for (size_t i = 0; i < calls.size(); ++i) {
        const auto & call = now.tool_calls[i];
        if (!calls[i].announced && !whole && call.arguments.empty() && i + 1 == calls.size()) continue;
        ChatDelta delta;
        delta.call = int64_t(i);
        delta.call_arguments = grown(calls[i].arguments, call.arguments);
        if (!calls[i].announced) {
            calls[i].announced = true;
            calls[i].name = call.name;
            delta.call_id = call.id.empty() ? new_call_id() : call.id;
            delta.call_name = call.name;
        } else if (call.name != calls[i].name) {
            throw std::runtime_error("the name of a tool call changed");
        }
        if (!delta.call_name.empty() || !delta.call_arguments.empty()) deltas.push_back(std::move(delta));
    }
    return deltas;
}

}  // namespace mullama
