// The check of a GGUF file before it is loaded; see gguf_check.hpp.
//
// The structure (counts, strings, types, shapes, offsets against the size of the file) is read by llama.cpp's own reader,
// which refuses all that does not fit. What follows is about the values: what llama.cpp divides by, multiplies without a
// look at the width, asserts, or hands to a kernel that asserts in a worker thread. A value of a type that llama.cpp does not
// expect is left to it: it throws. What only one architecture asks for is here where it would be a division by zero, and
// left to AbortGuard where it is an assertion.
#include "checks/gguf_check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <set>
#include <stdexcept>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include <unistd.h>

#include "gguf.h"
#include "llama.h"
#include "model/log.hpp"

namespace mullama {

namespace {

constexpr uint64_t max_layers = 512;    // LLAMA_MAX_LAYERS
constexpr uint64_t max_experts = 1024;  // LLAMA_MAX_EXPERTS
constexpr uint64_t max_metadata = 1 << 27;  // bytes; the reader makes room for what a broken count promises, up to here
constexpr uint64_t max_width = 1 << 24; // of an embedding, of all heads together; a product of two fits 64 bits

[[noreturn]] void refuse(const std::string & key, const std::string & value, const std::string & must) {
    throw std::runtime_error(key + " is " + value + ", and must be " + must);
}

std::string text_of(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return text;
}

// The file in large pieces, because the reader asks for some bytes at a time.
class Pieces {
  public:
    explicit Pieces(const std::string & path) : file_(std::fopen(path.c_str(), "rb"), std::fclose) {
        if (!file_ || fseeko(file_.get(), 0, SEEK_END) != 0) throw std::runtime_error("it cannot be opened");
        const auto end = ftello(file_.get());
        if (end < 0) throw std::runtime_error("it is no regular file");
        size_ = uint64_t(end);
        std::setvbuf(file_.get(), nullptr, _IONBF, 0);
    }

    uint64_t size() const { return size_; }

    static size_t read(void * pieces, void * to, uint64_t offset, size_t n) {
        return static_cast<Pieces *>(pieces)->read(static_cast<char *>(to), offset, n);
    }

  private:
    size_t read(char * to, uint64_t offset, size_t n) {
        size_t done = 0;
        while (done < n) {
            const uint64_t at = offset + done;
            if (at < begin_ || at >= begin_ + filled_) {
                begin_ = at;
                filled_ = at < size_ && fseeko(file_.get(), off_t(at), SEEK_SET) == 0
                              ? std::fread(piece_.data(), 1, piece_.size(), file_.get()) : 0;
                if (filled_ == 0) break;
            }
            const size_t some = std::min<uint64_t>(n - done, begin_ + filled_ - at);
            std::memcpy(to + done, piece_.data() + (at - begin_), some);
            done += some;
        }
        return done;
    }

    std::unique_ptr<FILE, int (*)(FILE *)> file_;
    uint64_t size_ = 0, begin_ = 0, filled_ = 0;
    std::vector<char> piece_ = std::vector<char>(1 << 18);
};

class File {
  public:
    explicit File(const std::string & path) : gguf_(nullptr, gguf_free) {
        Pieces pieces(path);
        take_errors();
        const uint64_t most = std::min(pieces.size(), max_metadata);
        gguf_.reset(gguf_init_from_callback(Pieces::read, &pieces, 0, most, {true, nullptr}));
        if (!gguf_) throw std::runtime_error(take_errors());
        check_extent(pieces.size());
        arch_ = string("general.architecture");
    }

    const std::string & arch() const { return arch_; }
    std::string own(const char * key) const { return arch_ + "." + key; }
    const gguf_context * operator*() const { return gguf_.get(); }

    // The id of a key whose value is of this type (an array's: of this type), or -1.
    int64_t find(const std::string & key, gguf_type type) const { return of_type(gguf_find_key(**this, key.c_str()), type, false); }
    int64_t find_array(const std::string & key, gguf_type type) const { return of_type(gguf_find_key(**this, key.c_str()), type, true); }

    bool has(const std::string & key) const { return gguf_find_key(**this, key.c_str()) >= 0; }

    std::string string(const std::string & key) const {
        const int64_t id = find(key, GGUF_TYPE_STRING);
        return id < 0 ? "" : gguf_get_val_str(**this, id);
    }

    // An unsigned number of this architecture, or what counts where there is none.
    uint64_t number(const char * key, uint64_t otherwise) const {
        const int64_t id = find(own(key), GGUF_TYPE_UINT32);
        return id < 0 ? otherwise : gguf_get_val_u32(**this, id);
    }

    // One number for each layer; where there is one for all, so many times that one.
    std::vector<uint64_t> numbers(const char * key, uint64_t n_layers, uint64_t otherwise) const {
        int64_t id = find_array(own(key), GGUF_TYPE_UINT32);
        if (id < 0) id = find_array(own(key), GGUF_TYPE_INT32);
        if (id < 0) return std::vector<uint64_t>(n_layers, number(key, otherwise));
        const auto * data = static_cast<const uint32_t *>(gguf_get_arr_data(**this, id));
        return {data, data + gguf_get_arr_n(**this, id)};
    }

    void within(const char * key, uint64_t low, uint64_t high) const {
        const uint64_t value = number(key, low);
        if (value < low || value > high) {
            refuse(own(key), std::to_string(value), "from " + std::to_string(low) + " to " + std::to_string(high));
        }
    }

  private:
    int64_t of_type(int64_t id, gguf_type type, bool array) const {
        if (id < 0 || (gguf_get_kv_type(**this, id) == GGUF_TYPE_ARRAY) != array) return -1;
        return (array ? gguf_get_arr_type(**this, id) : gguf_get_kv_type(**this, id)) == type ? id : -1;
    }

    void check_extent(uint64_t size) const {
        const int64_t n = gguf_get_n_tensors(**this);
        if (n == 0) return;
        const uint64_t begin = gguf_get_data_offset(**this), last = gguf_get_tensor_offset(**this, n - 1);
        const uint64_t end = begin + last + gguf_get_tensor_size(**this, n - 1);
        if (end > size || end < begin + last || begin + last < begin) {
            throw std::runtime_error("it ends after " + std::to_string(size) + " bytes, and its tensors need " +
                                     std::to_string(end));
        }
    }

    std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf_;
    std::string arch_;
};

// A kernel asserts these, in a worker thread.
void check_floats(const File & file) {
    for (int64_t id = 0; id < gguf_get_n_kv(*file); ++id) {
        const std::string key = gguf_get_key(*file, id);
        if (key.rfind(file.arch() + ".", 0) != 0 || gguf_get_kv_type(*file, id) != GGUF_TYPE_FLOAT32) continue;
        const float value = gguf_get_val_f32(*file, id);
        if (std::isnan(value)) refuse(key, "NaN", "a number");
        const bool epsilon = key.size() >= 7 && key.compare(key.size() - 7, 7, "epsilon") == 0;
        if (epsilon && !(value >= 0.0f && value < 1.0f)) refuse(key, text_of(value), "from 0 to 1");
    }
}

void check_experts(const File & file, uint64_t n_layers) {
    const uint64_t n = file.number("expert_count", 0), groups = file.number("expert_group_count", 0);
    file.within("expert_count", 0, max_experts);
    const auto used = file.numbers("expert_used_count", n_layers, 0);
    const uint64_t most = used.empty() ? 0 : *std::max_element(used.begin(), used.end());
    const std::string key = file.own("expert_used_count");
    if (most > n) refuse(key, std::to_string(most), "at most the expert_count, " + std::to_string(n));
    if (n > 0 && groups >= n) refuse(file.own("expert_group_count"), std::to_string(groups), "below " + std::to_string(n));
    // These divide the width of their layers by it where they are not told the width of an expert.
    static const std::set<std::string> divide = {"glm4moe", "grovemoe", "llada-moe", "qwen3next", "qwen35moe", "qwen4exp"};
    const bool divided = divide.count(file.arch()) > 0 && file.number("expert_feed_forward_length", 0) == 0;
    if (most == 0 && (n > 0 || divided)) refuse(key, "0", "more than 0 in a model of experts");
}

// Divisors of whole numbers, that is, signals where they are 0.
void check_divisors(const File & file) {
    static const std::pair<const char *, const char *> divisors[] = {
        {"", "full_attention_interval"},       {"", "wkv.head_size"},
        {"", "ssm.time_step_rank"},            {"", "experts_per_group"},
        {"mamba2", "ssm.group_count"},         {"granitehybrid", "ssm.group_count"},
        {"nemotron_h", "ssm.group_count"},     {"nemotron_h_moe", "ssm.group_count"},
        {"falcon-h1", "ssm.group_count"},      {"ernie4_5-moe", "interleave_moe_layer_step"},
        {"olmo2", "attention.head_count"},     {"phimoe", "attention.head_count"},
        {"deepseek4", "attention.output_group_count"},
    };
    for (const auto & [arch, key] : divisors) {
        if (*arch != '\0' && arch != file.arch()) continue;
        const auto values = file.numbers(key, 1, *arch == '\0' && !file.has(file.own(key)) ? 1 : 0);
        if (!values.empty() && values[0] == 0) refuse(file.own(key), "0 or missing", "more than 0");
    }
}

// Heads, their widths, and what they come to; returns the bytes of a cell of the KV cache.
uint64_t check_attention(const File & file, uint64_t n_layers) {
    const auto heads = file.numbers("attention.head_count", n_layers, 0);
    std::vector<uint64_t> heads_kv = heads;
    if (file.has(file.own("attention.head_count_kv"))) heads_kv = file.numbers("attention.head_count_kv", n_layers, 0);
    const uint64_t first = heads.empty() ? 0 : heads[0], width = file.number("embedding_length", 0);
    const uint64_t each = first > 0 ? width / first : 0;
    const uint64_t key_length = file.number("attention.key_length", each);
    const uint64_t value_length = file.number("attention.value_length", each);
    const bool latent = file.has(file.own("attention.key_length_mla"));  // then values are a part of the keys
    const uint64_t interval = std::max<uint64_t>(1, file.number("full_attention_interval", 1));
    const uint64_t borrowed = file.number("attention.shared_kv_layers", 0);  // the last ones have no cache of their own
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < n_layers && i < heads.size() && i < heads_kv.size(); ++i) {
        const uint64_t n = heads[i], n_kv = heads_kv[i];
        const uint64_t widest = std::max(key_length, value_length);
        if (n > max_width || widest > max_width || n * widest > max_width) {
            refuse(file.own("attention.head_count"), std::to_string(n),
                   "so many that, " + std::to_string(widest) + " wide each, they come to at most " + std::to_string(max_width));
        }
        if (n_kv > 0 && n > 0 && n % n_kv != 0) {
            refuse(file.own("attention.head_count_kv"), std::to_string(n_kv), "a divisor of head_count, " + std::to_string(n));
        }
        if (n_kv > max_width) refuse(file.own("attention.head_count_kv"), std::to_string(n_kv), "at most head_count");
        if (i + borrowed < n_layers) bytes += 2 * n_kv * (key_length + (latent ? 0 : value_length));
    }
    for (const char * key : {"rope.dimension_count", "rope.dimension_count_swa"}) {
        const uint64_t n_rot = file.number(key, 0);
        if (n_rot % 2 != 0) refuse(file.own(key), std::to_string(n_rot), "even");
        if (n_rot > max_width) refuse(file.own(key), std::to_string(n_rot), "at most the width of a head");
    }
    const uint64_t n_rot = file.number("rope.dimension_count", 0);
    if (key_length > 0 && n_rot > key_length) {
        refuse(file.own("rope.dimension_count"), std::to_string(n_rot), "at most a head's width, " + std::to_string(key_length));
    }
    return bytes / interval;
}

uint64_t check_hyperparameters(const File & file) {
    file.within("block_count", 1, max_layers);
    const uint64_t n_layers = file.number("block_count", 0);
    file.within("nextn_predict_layers", 0, n_layers);
    file.within("context_length", 0, INT32_MAX);
    file.within("embedding_length", 1, max_width);
    file.within("feed_forward_length", 0, max_width);
    file.within("expert_feed_forward_length", 0, max_width);
    const std::string scaling = file.string(file.own("rope.scaling.type"));
    static const std::set<std::string> scalings = {"", "none", "linear", "yarn", "longrope"};
    if (scalings.count(scaling) == 0) refuse(file.own("rope.scaling.type"), "'" + scaling + "'", "none, linear, yarn or longrope");
    check_floats(file);
    check_divisors(file);
    check_experts(file, n_layers);
    return check_attention(file, n_layers);
}

// llama.cpp asserts that no two tokens have the same text; empty ones it gives names of their own.
void check_tokens(const File & file) {
    const std::string key = "tokenizer.ggml.tokens";
    const int64_t id = file.find_array(key, GGUF_TYPE_STRING);
    const size_t n = id < 0 ? 0 : gguf_get_arr_n(*file, id);
    std::deque<std::string> names;
    std::vector<std::string_view> pieces(n);
    std::vector<size_t> hashes(n);
    for (size_t i = 0; i < n; ++i) {
        pieces[i] = gguf_get_arr_str(*file, id, i);
        if (pieces[i].empty()) pieces[i] = names.emplace_back("[EMPTY_" + std::to_string(i) + "]");
        hashes[i] = std::hash<std::string_view>()(pieces[i]);
    }
    std::sort(hashes.begin(), hashes.end());  // twice as fast as a set of the strings, which is for the rare case
    if (std::adjacent_find(hashes.begin(), hashes.end()) == hashes.end()) return;
    std::unordered_set<std::string_view> seen;
    for (size_t i = 0; i < n; ++i) {
        const std::string at = key + "[" + std::to_string(i) + "]";
        if (!seen.insert(pieces[i]).second) refuse(at, "'" + std::string(pieces[i]) + "'", "unlike all tokens before it");
    }
}

void check_vocabulary(const File & file) {
    file.within("vocab_size", 0, max_width);  // so many tokens are made where the file brings none
    check_tokens(file);
    for (const gguf_type type : {GGUF_TYPE_INT8, GGUF_TYPE_UINT8}) {  // llama.cpp reads strings out of this up to their NUL
        const int64_t map = file.find_array("tokenizer.ggml.precompiled_charsmap", type);
        if (map < 0) continue;
        const size_t length = gguf_get_arr_n(*file, map);
        if (length == 0 || static_cast<const char *>(gguf_get_arr_data(*file, map))[length - 1] != '\0') {
            throw std::runtime_error("tokenizer.ggml.precompiled_charsmap does not end with NUL");
        }
    }
}

std::vector<int32_t> control_tokens(const File & file) {
    std::vector<int32_t> tokens;
    for (const gguf_type type : {GGUF_TYPE_INT32, GGUF_TYPE_UINT32}) {
        const int64_t id = file.find_array("tokenizer.ggml.token_type", type);
        const size_t n = id < 0 ? 0 : gguf_get_arr_n(*file, id);
        for (size_t i = 0; i < n; ++i) {
            const auto kind = static_cast<const int32_t *>(gguf_get_arr_data(*file, id))[i];
            if (kind == LLAMA_TOKEN_TYPE_CONTROL) tokens.push_back(int32_t(i));
        }
    }
    return tokens;
}

// llama.cpp takes the number of a part for a u16 without asking.
void check_parts(const File & file, const std::string & path) {
    const int64_t id = file.find("split.count", GGUF_TYPE_UINT16);
    const int n = id < 0 ? 0 : gguf_get_val_u16(*file, id);
    std::vector<char> prefix(path.size() + 1), part(path.size() + 64);
    if (n < 2 || llama_split_prefix(prefix.data(), prefix.size(), path.c_str(), 0, n) == 0) return;
    for (int i = 1; i < n; ++i) {
        llama_split_path(part.data(), part.size(), prefix.data(), i, n);
        try {
            const File other(part.data());
            if (other.find("split.no", GGUF_TYPE_UINT16) < 0) throw std::runtime_error("split.no is missing or no u16");
        } catch (const std::exception & e) {
            throw std::runtime_error("its part " + std::string(part.data()) + ": " + e.what());
        }
    }
}

// What there is for this process: the machine's memory, or less where its control group is given less.
uint64_t physical_memory() {
    uint64_t bytes = uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE));
    for (const char * name : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
        uint64_t limit;
        if (std::ifstream(name) >> limit) bytes = std::min(bytes, limit);
    }
    return bytes;
}

}  // namespace

ModelFacts check_gguf(const std::string & path, bool vocab_only) {
    const File file(path);
    ModelFacts facts;
    check_parts(file, path);
    check_vocabulary(file);
    facts.control_tokens = control_tokens(file);
    if (vocab_only) return facts;
    if (!file.arch().empty()) facts.bytes_per_cell = check_hyperparameters(file);
    if (gguf_find_tensor(*file, "position_embd.weight") >= 0) facts.n_positions = file.number("context_length", 0);
    return facts;
}

void check_room(const ModelFacts & facts, uint64_t n_ctx, uint64_t n_cells, uint64_t n_seq_max) {
    if (n_cells < n_seq_max) {
        throw std::runtime_error("n_cells is " + std::to_string(n_cells) + ", less than one for each of n_seq_max, " +
                                 std::to_string(n_seq_max) + ", sequences");
    }
    if (facts.n_positions > 0 && n_ctx > facts.n_positions) {
        throw std::runtime_error("n_ctx is " + std::to_string(n_ctx) + ", and the model knows " +
                                 std::to_string(facts.n_positions) + " positions");
    }
    const uint64_t there = physical_memory();
    if (facts.bytes_per_cell > 0 && n_cells > there / facts.bytes_per_cell) {
        const auto gib = [](double bytes) { return text_of(std::round(bytes / (1 << 30) * 10) / 10) + " GiB"; };
        throw std::runtime_error("a KV cache of " + std::to_string(n_cells) + " cells needs " +
                                 gib(double(n_cells) * double(facts.bytes_per_cell)) + " of memory, and there is " +
                                 gib(double(there)));
    }
}

}  // namespace mullama
