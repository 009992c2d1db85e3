// Tools in words, and what templates leave out; see tools.hpp.
#include "chat/tools.hpp"

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

// llama.cpp's
#include <chat-peg-parser.h>
#include <json-schema-to-grammar.h>
#include <json.h>

namespace mullama {

namespace {

constexpr const char * call_key = "tool_call", * result_key = "tool_response";

std::optional<common_chat_params> tried(const common_chat_templates * templates, const common_chat_templates_inputs & inputs) {
    try {
        return common_chat_templates_apply(templates, inputs);
    } catch (const std::exception &) {
        return std::nullopt;
    }
}

bool has(const std::string & text, const std::string & word) { return text.find(word) != std::string::npos; }

common_chat_msg message(const char * role, const char * content) {
    common_chat_msg said;
    said.role = role;
    said.content = content;
    return said;
}

// To a message's content.
void append(common_chat_msg & message, const std::string & text) {
    if (message.content_parts.empty()) {
        message.content += (message.content.empty() ? "" : "\n\n") + text;
    } else {
        message.content_parts.push_back({"text", text});
    }
}

common_json json_of(const std::string & arguments) {
    auto value = common_json::parse_no_throw(arguments);
    return value.is_discarded() ? common_json(arguments) : value;
}

// JSON with a space behind each comma and colon, as models have read it.
std::string dump(const common_json & value) {
    std::string spaced;
    bool quoted = false, escaped = false;
    for (const char c : value.dump()) {
        spaced += c;
        if (!quoted && (c == ',' || c == ':')) spaced += ' ';
        if (c == '"' && !escaped) quoted = !quoted;
        escaped = c == '\\' && !escaped;
    }
    return spaced;
}

std::string trimmed(const std::string & text) {
    size_t begin = 0, end = text.size();
    while (begin < end && std::isspace(static_cast<unsigned char>(text[begin]))) ++begin;
    while (end > begin && std::isspace(static_cast<unsigned char>(text[end - 1]))) --end;
    return text.substr(begin, end - begin);
}

constexpr size_t long_enough = 64;  // of a text, to find it again: to look for all of it may take long

// Whether a text has the word, most likely behind `place`, which is where it ends then.
bool find(const std::string & text, const std::string & word, size_t & place) {
    size_t at = text.find(word, place);
    if (at == std::string::npos) at = text.find(word);
    if (at == std::string::npos) return false;
    place = at + word.size();
    return true;
}

// A number that is the same backwards, which hardly any template changes.
std::string palindrome(size_t i) {
    const auto digits = std::to_string(100000 + i);
    return "9" + digits + std::string(digits.rbegin(), digits.rend()) + "9";
}

// Calls text(role, text) for what the template has to show of messages.
template <typename Inputs, typename Text>
void texts_of(Inputs & inputs, Text text) {
    for (auto & message : inputs.messages) {
        if (message.role == "assistant") continue;  // many leave out what stands beside a call, and thoughts
        text(message.role, message.content);
        for (auto & part : message.content_parts) text(message.role, part.text);
    }
}

// Where a parser has words for the user.
class Words {
  public:
    explicit Words(const common_peg_arena & parser) : parser_(parser), in_(parser.size()) {
        for (bool changed = true; changed;) {
            changed = false;
            for (common_peg_parser_id id = 0; id < parser.size(); ++id) {
                const bool now = std::visit([this](const auto & piece) { return judge(piece); }, parser.get(id));
                changed = changed || now != bool(in_[id]);
                in_[id] = char(now);
            }
        }
    }

    bool in(common_peg_parser_id id) const { return in_[id] != 0; }  // it cannot do without them
    bool are(common_peg_parser_id id) const {
        const auto * tag = std::get_if<common_peg_tag_parser>(&parser_.get(id));
        return tag != nullptr && tag->tag == common_chat_peg_builder::CONTENT;
    }
    bool optional(common_peg_parser_id id) const {
        const auto * repetition = std::get_if<common_peg_repetition_parser>(&parser_.get(id));
        return repetition != nullptr && repetition->min_count <= 0 && in(repetition->child);
    }

  private:
    template <typename Piece>
    bool judge(const Piece & piece) const {
        const auto within = [this](common_peg_parser_id id) { return in(id); };
        if constexpr (std::is_same_v<Piece, common_peg_tag_parser>) {
            return piece.tag == common_chat_peg_builder::CONTENT || in(piece.child);
        } else if constexpr (std::is_same_v<Piece, common_peg_sequence_parser>) {
            return std::any_of(piece.children.begin(), piece.children.end(), within);
        } else if constexpr (std::is_same_v<Piece, common_peg_choice_parser>) {
            return !piece.children.empty() && std::all_of(piece.children.begin(), piece.children.end(), within);
        } else if constexpr (std::is_same_v<Piece, common_peg_repetition_parser>) {
            return piece.min_count > 0 && in(piece.child);
        } else if constexpr (std::is_same_v<Piece, common_peg_ref_parser>) {
            return in(parser_.get_rule(piece.name));
        } else if constexpr (std::is_same_v<Piece, common_peg_rule_parser> || std::is_same_v<Piece, common_peg_atomic_parser>) {
            return in(piece.child);
        } else {
            return false;
        }
    }

    const common_peg_arena & parser_;
    std::vector<char> in_;
};

}  // namespace

std::optional<ToolSupport> tool_support(const common_chat_templates * templates) {
    common_chat_templates_inputs inputs;
    inputs.reasoning_format = COMMON_REASONING_FORMAT_AUTO;
    inputs.messages = {message("user", "zquser")};
    inputs.tools = {{"zqname", "zqtext", R"({"type": "object", "properties": {"zqkey": {"type": "string"}}})"}};
    inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_REQUIRED;
    const auto first = tried(templates, inputs);
    if (!first) return std::nullopt;
    const bool calls = !first->grammar.empty(), told = has(first->prompt, "zqname");
    inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_NONE;
    for (const char * thought : {"", "zqthought"}) {  // some want the latter
        auto call = message("assistant", "");
        call.reasoning_content = thought;
        call.tool_calls = {{"zqname", R"({"zqkey": "zqvalue"})", "abcdefghi"}};
        auto result = message("tool", "zqresult");
        result.tool_name = "zqname";
        result.tool_call_id = "abcdefghi";
        inputs.messages = {message("user", "zquser"), call, result};
        const auto again = tried(templates, inputs);
        if (again) return ToolSupport{calls, told, has(again->prompt, "zqvalue") && has(again->prompt, "zqresult")};
    }
    return ToolSupport{calls, told, calls};  // if it is for the template to refuse them, it will
}

void describe_tools(common_chat_templates_inputs & inputs, bool form) {
    std::string text = "You can call these functions:\n";
    for (const auto & tool : common_chat_tools_to_json_oaicompat(inputs.tools)) text += "\n" + dump(tool.at("function"));
    if (form) {
        text += "\n\nTo call one, answer only with JSON of this form: {\"" + std::string(call_key) +
                "\": {\"name\": <the function's name>, \"arguments\": <an object of its parameters>}}";
        if (inputs.parallel_tool_calls) text += "\nFor several calls, put a comma between them.";
    }
    auto & messages = inputs.messages;
    const bool has_system = !messages.empty() && (messages[0].role == "system" || messages[0].role == "developer");
    if (!has_system) messages.insert(messages.begin(), message("system", ""));
    append(messages[0], text);
}

void write_calls(common_chat_templates_inputs & inputs) {
    std::vector<common_chat_msg> written;
    bool after_result = false;
    for (auto & said : inputs.messages) {
        std::string calls;
        for (const auto & call : said.tool_calls) {
            const common_json json{{call_key, {{"name", call.name}, {"arguments", json_of(call.arguments)}}}};
            calls += (calls.empty() ? "" : ", ") + dump(json);
        }
        if (!calls.empty()) append(said, calls);
        said.tool_calls.clear();
        const bool result = said.role == "tool";
        if (result) {
            common_json json = common_json::object();
            if (!said.tool_name.empty()) json["name"] = said.tool_name;
            json["content"] = said.render_content("\n");
            said = message("user", "");
            said.content = dump(common_json{{result_key, json}});
        }
        // Roles have to alternate in some templates.
        if (after_result && said.role == "user") append(written.back(), said.render_content("\n"));
        else written.push_back(std::move(said));
        after_result = result;
    }
    inputs.messages = std::move(written);
}

void read_calls(common_chat_params & applied, const common_chat_templates_inputs & inputs) {
    const auto tools = common_chat_tools_to_json_oaicompat(inputs.tools);
    const bool required = inputs.tool_choice == COMMON_CHAT_TOOL_CHOICE_REQUIRED;
    const std::string start = std::string("{\"") + call_key + "\"", key = std::string(call_key) + ".";
    const std::string thought = applied.thinking_start_tag;
    applied.parser = build_chat_peg_parser([&](common_chat_peg_builder & p) {
        auto calls = p.standard_json_tools("", "", tools, inputs.parallel_tool_calls, required, key + "name", key + "arguments");
        auto answer = required ? p.space() + calls + p.end() : p.optional(p.content(p.until(start))) + calls + p.end();
        auto begun = p.prefix(applied.generation_prompt, thought);
        if (applied.thinking_end_tags.empty()) return begun + answer;
        const auto & end = applied.thinking_end_tags.front();
        auto thinking = thought.empty() ? p.optional(p.reasoning(p.until(end)) + p.literal(end))
                                        : p.optional(p.literal(thought) + p.reasoning(p.until(end)) + p.literal(end));
        return begun << thinking << answer;
    });
    applied.format = COMMON_CHAT_FORMAT_PEG_NATIVE;
    applied.grammar_lazy = !required;
    applied.grammar_triggers.clear();
    applied.grammar = build_grammar([&](const common_grammar_builder & b) { applied.parser.build_grammar(b, !required); });
    if (!required) applied.grammar_triggers = {{COMMON_GRAMMAR_TRIGGER_TYPE_WORD, start}};
}

std::string grammar_without_words(const common_peg_arena & parser) {
    auto silent = parser;
    const Words words(parser);
    for (common_peg_parser_id id = 0; id < silent.size(); ++id) {
        auto & piece = silent.get(id);
        if (auto * choice = std::get_if<common_peg_choice_parser>(&piece); choice != nullptr && !words.in(id)) {
            auto & ways = choice->children;
            ways.erase(std::remove_if(ways.begin(), ways.end(), [&](auto way) { return words.in(way); }), ways.end());
        } else if (words.optional(id) || words.are(id)) {
            piece = common_peg_literal_parser{""};
        }
    }
    return build_grammar([&](const common_grammar_builder & builder) { silent.build_grammar(builder, false); });
}

void check_shown(const common_chat_templates * templates, const common_chat_templates_inputs & inputs, const std::string & prompt) {
    bool shown = true;
    size_t place = 0;
    texts_of(inputs, [&](const std::string &, const std::string & text) {
        shown = shown && find(prompt, trimmed(text).substr(0, long_enough), place);
    });
    if (shown) return;
    // Something may stand there in another form. If a number in its place does, it does.
    auto probe = inputs;
    probe.tool_choice = COMMON_CHAT_TOOL_CHOICE_NONE;
    std::vector<std::pair<std::string, std::string>> numbers;  // behind the roles
    texts_of(probe, [&](const std::string & role, std::string & text) {
        if (trimmed(text).empty()) return;
        text = palindrome(numbers.size());
        numbers.emplace_back(role, text);
    });
    const auto rendered = tried(templates, probe);
    place = 0;
    for (const auto & [role, number] : numbers) {
        if (rendered && !find(rendered->prompt, number, place)) {
            throw std::runtime_error("it leaves out what a message of the role '" + role + "' says");
        }
    }
}

}  // namespace mullama
