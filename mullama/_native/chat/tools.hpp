// Tools where llama.cpp leaves a template alone with them: what a template knows of them, and words in place of the rest.
//
// Some templates know no tools, and llama.cpp would leave out silently what they do not know. There the tools are described
// in a system message, calls and results are written as JSON in messages that every template has, and the model is to call
// in that form too. It is that of llama.cpp's former generic handler, put together of its own parts.
#pragma once

#include <optional>
#include <string>

// llama.cpp's
#include <chat.h>

namespace mullama {

struct ToolSupport {
    bool calls;    // llama.cpp knows in which form the model calls
    bool told;     // the template tells the model of tools
    bool history;  // it shows earlier calls and their results
};

// Tried out with a chat. Nothing, where the template renders none such.
std::optional<ToolSupport> tool_support(const common_chat_templates * templates);

// Describes the tools in the system message; `form`: also how to call them.
void describe_tools(common_chat_templates_inputs & inputs, bool form);

// Writes calls and results as text.
void write_calls(common_chat_templates_inputs & inputs);

// Has the answer read, and constrained, in the form that describe_tools() names. `inputs` have the tools.
void read_calls(common_chat_params & applied, const common_chat_templates_inputs & inputs);

// The grammar of a parser, but that the answer has no words for the user in it.
std::string grammar_without_words(const common_peg_arena & parser);

// Throws std::runtime_error if the template left out what a message says that is not the model's.
void check_shown(const common_chat_templates * templates, const common_chat_templates_inputs & inputs, const std::string & prompt);

}  // namespace mullama
