// Marking users' strings; see user_text.hpp.
#include "chat/user_text.hpp"

#include <algorithm>
#include <cstdio>
#include <set>
#include <stdexcept>

// llama.cpp's
#include <chat.h>
#include <json.h>

namespace mullama {

namespace {

constexpr uint32_t first_private = 0xF0000, n_private = 0x20000;  // two planes that no standard will ever use
constexpr const char * white_space = " \t\n\r\v\f";

std::string utf8(uint32_t c) {
    return {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 0x3F)), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
}

// As JSON has it where only ASCII is allowed.
std::string escaped(uint32_t c) {
    char text[16];
    std::snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + ((c - 0x10000) & 0x3FF));
    return text;
}

// The number of the next four characters in hexadecimal; -1: they are none.
int32_t hexadecimal(std::string_view text, size_t at) {
    if (at + 4 > text.size()) return -1;
    int32_t n = 0;
    for (size_t i = at; i < at + 4; ++i) {
        const char c = text[i];
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        n = n * 16 + digit;
    }
    return n;
}

// Notes the private characters of a text, and those that it has in an escaped form, however often escaped.
void note(std::vector<bool> & taken, std::string_view text) {
    for (size_t at = 0; at + 3 < text.size(); ++at) {
        const auto byte = [&](size_t i) { return uint32_t(static_cast<unsigned char>(text[at + i])); };
        uint32_t c = 0;
        if (byte(0) >= 0xF3) {
            c = (byte(0) & 7) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
        } else if (text[at] == 'u') {
            const size_t second = text.find_first_not_of('\\', at + 5);
            const int32_t high = hexadecimal(text, at + 1);
            if (high < 0xDB80 || high > 0xDBFF || second == std::string_view::npos || text[second] != 'u') continue;
            const int32_t low = hexadecimal(text, second + 1);
            if (low >= 0xDC00 && low <= 0xDFFF) c = 0x10000 + (uint32_t(high - 0xD800) << 10) + uint32_t(low - 0xDC00);
        }
        if (c >= first_private && c < first_private + n_private) taken[c - first_private] = true;
    }
}

// Calls text(string) for each string of the users', and json(string) where they are within a text of JSON.
template <typename Inputs, typename Text, typename Json>
void visit(Inputs & inputs, Text text, Json json) {
    for (auto & message : inputs.messages) {
        text(message.content);
        for (auto & part : message.content_parts) text(part.text);
        text(message.reasoning_content);
        text(message.tool_name);
        text(message.tool_call_id);
        for (auto & call : message.tool_calls) {
            text(call.name);
            text(call.id);
            json(call.arguments);
        }
    }
    for (auto & tool : inputs.tools) {
        text(tool.name);
        text(tool.description);
        json(tool.parameters);
    }
    for (auto & [name, value] : inputs.chat_template_kwargs) json(value);
    json(inputs.json_schema);  // some templates show it
}

// A string of JSON that begins at `at`, after its quotation mark: what it says, and where each byte of that stands, the
// closing quotation mark for the end. The JSON must be sound.
struct Literal {
    std::string text;
    std::vector<size_t> where;

    Literal(const std::string & json, size_t at) {
        while (json[at] != '"') {
            const size_t begin = at;
            std::string said(1, json[at++]);
            if (said == "\\") {
                const char c = json[at++];
                static const std::string from = "bfnrt", to = "\b\f\n\r\t";
                const size_t i = from.find(c);
                said = std::string(1, i == std::string::npos ? c : to[i]);
                if (c == 'u') said = unicode(json, at);
            }
            text += said;
            where.insert(where.end(), said.size(), begin);
        }
        where.push_back(at);
    }

    static std::string unicode(const std::string & json, size_t & at) {
        uint32_t c = uint32_t(hexadecimal(json, at));
        at += 4;
        if (c >= 0xD800 && c < 0xDC00) {
            c = 0x10000 + ((c - 0xD800) << 10) + uint32_t(hexadecimal(json, at + 2) - 0xDC00);
            at += 6;
        }
        if (c >= 0x10000) return utf8(c);
        if (c < 0x80) return std::string(1, char(c));
        if (c < 0x800) return {char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))};
        return {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
    }
};

// The vocabulary of JSON schemas is not the users', and templates look for it.
bool is_keyword(const std::string & text) {
    static const std::set<std::string> keywords = {
        "$ref", "additionalProperties", "allOf", "anyOf", "array", "boolean", "const", "default", "description", "enum", "format",
        "integer", "items", "null", "nullable", "number", "object", "oneOf", "properties", "required", "string", "title", "type",
    };
    return keywords.count(text) != 0;
}

}  // namespace

UserText::UserText(const SpecialTokens & specials, const common_chat_templates_inputs & inputs, const std::string & source)
    : specials_(specials), opens_(begins_name(source)) {
    std::vector<bool> taken(n_private);
    const auto look = [&taken](const std::string & text) { note(taken, text); };
    look(source);
    for (const auto & name : specials.control_names().all()) note(taken, name);
    visit(inputs, look, look);
    const auto next = [&taken] {
        const auto free = std::find(taken.begin(), taken.end(), false);
        if (free == taken.end()) throw std::runtime_error("the messages use all private characters of Unicode");
        *free = true;
        return first_private + uint32_t(free - taken.begin());
    };
    const uint32_t behind = next(), before = next();
    behind_ = utf8(behind);
    before_ = utf8(before);
    behind_escaped_ = escaped(behind);
    before_escaped_ = escaped(before);
}

bool UserText::mark(common_chat_templates_inputs & inputs, Reach reach) const {
    bool any = false;
    visit(inputs, [&](std::string & text) { any = mark_text(text, reach) || any; },
          [&](std::string & json) { any = mark_json(json, reach) || any; });
    return any;
}

bool UserText::mark_text(std::string & text, Reach reach) const {
    const auto marks = places(text, reach);
    std::string marked;
    size_t done = 0;
    for (const auto & place : marks) {
        marked.append(text, done, place.at - done) += *place.mark;
        done = place.at;
    }
    if (!marks.empty()) text = marked.append(text, done);
    return !marks.empty();
}

bool UserText::mark_json(std::string & json, Reach reach) const {
    if (json.empty()) return false;
    if (common_json::parse_no_throw(json).is_discarded()) return mark_text(json, reach);
    std::string marked;
    size_t done = 0;
    for (size_t at = 0; (at = json.find('"', at)) != std::string::npos; ++at) {
        const Literal literal(json, at + 1);
        const auto marks = is_keyword(literal.text) ? std::vector<Place>() : places(literal.text, reach);
        for (const auto & place : marks) {
            marked.append(json, done, literal.where[place.at] - done) += *place.mark;
            done = literal.where[place.at];
        }
        at = literal.where.back();
    }
    if (done > 0) json = marked.append(json, done);
    return done > 0;
}

// Whether a template has the beginning of a name somewhere, with the end of what it writes behind it.
bool UserText::begins_name(std::string_view source) const {
    const auto nothing = [](std::string_view) {};
    for (size_t at = 0; at < source.size(); ++at) {
        size_t n = 0;
        while (n <= source.size() - at && specials_.control_names().walk(source.substr(at, n), nothing)) ++n;
        if (n < 2) continue;  // with one character more it is no beginning
        const size_t end = source.find_first_not_of(white_space, at + n - 1);
        if (end == std::string_view::npos || std::string_view("'\"\\{%").find(source[end]) != std::string_view::npos) return true;
    }
    return false;
}

// Whether a string with this in front of it could be the rest of a name, or be within one.
bool UserText::ends_name(std::string_view text) const {
    bool ends = false;
    return !text.empty() && (specials_.control_tails().walk(text, [&ends](std::string_view) { ends = true; }) || ends);
}

std::vector<UserText::Place> UserText::places(std::string_view text, Reach reach) const {
    // White space around it is what templates take off.
    const size_t begin = std::min(text.find_first_not_of(white_space), text.size());
    const size_t end = text.find_last_not_of(white_space) + 1;
    const auto bare = text.substr(begin, std::max(begin, end) - begin);
    std::vector<Place> marks;
    const auto ends_any = [&] {
        return ends_name(text) || ends_name(text.substr(begin)) || ends_name(bare) || ends_name(text.substr(0, end));
    };
    if (opens_ && reach != Reach::names && ends_any()) {
        marks.push_back({begin, &before_});
    }
    for (size_t at = 0; at < text.size(); ++at) {
        if (continues(text[at])) continue;
        for (const auto & start : specials_.control_starts()) {
            if (text.compare(at, start.size(), start) != 0) continue;
            bool whole = reach == Reach::starts;
            const auto found = [&whole](std::string_view) { whole = true; };
            const auto & names = specials_.control_names();
            if (whole || names.walk(text.substr(at), found) || whole || (at < end && names.walk(text.substr(at, end - at), found))) {
                if (reach == Reach::starts) marks.push_back({at, &before_});
                marks.push_back({at + start.size(), &behind_});
            }
            break;
        }
    }
    std::stable_sort(marks.begin(), marks.end(), [](const Place & a, const Place & b) { return a.at < b.at; });
    return marks;
}

size_t UserText::mark_at(std::string_view text, size_t at) const {
    for (const auto * mark : {&behind_, &before_, &behind_escaped_, &before_escaped_}) {
        if (text.compare(at, mark->size(), *mark) == 0) return mark->size();
    }
    return 0;
}

std::vector<std::string> UserText::pieces(std::string_view text) const {
    std::vector<std::string> all(1);
    for (size_t at = 0; at < text.size();) {
        const char c = text[at];
        const size_t n = c == behind_[0] || c == before_[0] || c == '\\' ? mark_at(text, at) : 0;
        if (n > 0) all.emplace_back();
        else all.back() += c;
        at += std::max<size_t>(n, 1);
    }
    return all;
}

std::string UserText::plain(std::string_view text) const {
    std::string whole;
    for (const auto & piece : pieces(text)) whole += piece;
    return whole;
}

}  // namespace mullama
