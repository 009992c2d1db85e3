// How tokens are to be chosen: the fields of SamplerParams (mullama/config.py) as llama.cpp's own parameters.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct common_params_sampling;

namespace mullama {

class Sampling {
  public:
    Sampling();
    ~Sampling();

    // By the name of the field; its range is checked in config.py. Throws std::invalid_argument where there is none.
    void set(const std::string & name, double value);
    void set(const std::string & name, const std::vector<std::string> & texts);
    void set_grammar(const std::string & gbnf);
    void add_bias(int32_t token, float bias);

    common_params_sampling & params() { return *params_; }

  private:
    std::unique_ptr<common_params_sampling> params_;
};

}  // namespace mullama
