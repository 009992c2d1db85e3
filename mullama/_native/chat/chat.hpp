// A chat's facade over llama.cpp's common library: messages to a prompt by the model's own template, text back to messages.
//
// Messages and tools come as JSON in the form of OpenAI's API. Templates, schemas and grammars come from models and users:
// whatever goes wrong with them, a failed assertion of llama.cpp's included, is a std::runtime_error. Only a template that
// calls itself for ever, or builds a text without end, cannot be stopped.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "chat/tools.hpp"
#include "checks/gguf_check.hpp"
#include "checks/work_limit.hpp"
#include "llama.h"
#include "model/special_tokens.hpp"

struct common_chat_templates;
struct common_params_sampling;

namespace mullama {

class Templates {
  public:
    // text: a Jinja template; empty: the model's own. Throws where there is none, or it cannot be parsed.
    Templates(std::shared_ptr<llama_model> model, const ModelFacts & facts, const std::string & text);
    ~Templates();

    const common_chat_templates * get() const { return templates_.get(); }
    const llama_model * model() const { return model_.get(); }
    const SpecialTokens & specials() const { return specials_; }
    bool supports_thinking() const;
    ToolSupport tools() const;

  private:
    struct Free { void operator()(common_chat_templates * templates) const; };
    const std::shared_ptr<llama_model> model_;
    const SpecialTokens specials_;
    std::unique_ptr<common_chat_templates, Free> templates_;
    mutable std::mutex mutex_;
    mutable std::optional<ToolSupport> tools_;  // when it was asked for
};

// What a chat is opened with; texts are JSON unless said otherwise.
struct ChatRequest {
    std::string messages, tools;         // arrays
    std::string tool_choice = "auto";    // a word: auto, required, none
    bool parallel_tool_calls = false;
    std::string grammar, json_schema;    // GBNF; JSON
    bool thinking = true;
    std::string reasoning_format = "auto";
    std::vector<std::pair<std::string, std::string>> arguments;  // of the template; values are JSON
};

// What is new of a message: of its reasoning, of its content, or of one tool call.
struct ChatDelta {
    std::string reasoning, content;
    int64_t call = -1;                       // index of the tool call; -1: none
    std::string call_id, call_name;          // with the first delta of a call only
    std::string call_arguments;              // a fragment of JSON
};

// One answer in the making: feed it the text of each token, and it tells what is new of the message. One thread at a time.
class Chat {
  public:
    Chat(std::shared_ptr<const Templates> templates, const ChatRequest & request);
    ~Chat();

    const std::string & prompt() const;
    std::vector<int32_t> prompt_tokens(const StopSignal & stop) const;  // none is a control token that users wrote
    const std::vector<std::string> & stops() const;
    std::vector<int32_t> preserved() const;                    // special tokens whose names the parser reads
    void amend(common_params_sampling & sampling) const;   // the grammar of tools or schema, and what triggers it

    // In the order: reasoning, content, tool calls. What may be the beginning of a mark is held back, and so is the end of what has
    // to be read from its beginning each time, where it is long; flush(): no more comes.
    // finish(): nor was the answer cut off.
    std::vector<ChatDelta> feed(const std::string & text, int32_t token);
    std::vector<ChatDelta> flush();
    std::vector<ChatDelta> finish();
    size_t n_parsed() const;  // bytes that parsers read so far, the same ones again each time

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace mullama
