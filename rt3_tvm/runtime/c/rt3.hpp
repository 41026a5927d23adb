// RAII over rt3.h, and nothing more.
#ifndef RT3_HPP_
#define RT3_HPP_

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "rt3.h"

namespace rt3 {

class Error : public std::runtime_error {
 public:
  Error(rt3_status status, const std::string &what) : std::runtime_error(what), status_(status) {}
  rt3_status status() const noexcept { return status_; }

 private:
  rt3_status status_;
};

inline rt3_status check(rt3_status status) {
  if (status < 0) throw Error(status, rt3_last_error());
  return status;
}

class Model {
 public:
  Model() {
    rt3_model *model = nullptr;
    check(rt3_open(&model));
    handle_.reset(model);
  }

  // Compares the bundle with the checksums that it was linked with.
  static void check_bundle() { check(rt3_check()); }

  int levels() const { return rt3_level_count(get()); }
  int level() const { return rt3_current_level(get()); }
  rt3_level_info level_info(int level) const {
    rt3_level_info info;
    check(rt3_level(get(), level, &info));
    return info;
  }
  void set_level(int level) { check(rt3_set_level(get(), level)); }
  // Returns false when the frequency is below the lowest level's: no deadline is guaranteed.
  bool set_frequency(double hz) { return check(rt3_set_frequency(get(), hz)) == RT3_OK; }
  void set_auto(const rt3_auto_options &options = {}) { check(rt3_set_auto(get(), &options)); }
  int max_threads() const { return rt3_max_threads(get()); }
  int threads() const { return rt3_threads(get()); }
  void set_threads(int threads) { check(rt3_set_threads(get(), threads)); }
  void run(const std::vector<rt3_tensor> &inputs, std::vector<rt3_tensor> &outputs) {
    check(rt3_run(get(), inputs.data(), static_cast<int32_t>(inputs.size()), outputs.data(),
                  static_cast<int32_t>(outputs.size())));
  }
  rt3_model *get() const { return handle_.get(); }

 private:
  struct Close {
    void operator()(rt3_model *model) const { rt3_close(model); }
  };
  std::unique_ptr<rt3_model, Close> handle_;
};

}  // namespace rt3

#endif  // RT3_HPP_
