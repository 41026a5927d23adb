// 8 threads run one bundle, each on a handle of its own, while all switch levels: their own and those of a shared
// handle that they also try to run. Each result must be that of one of the levels, bit for bit.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "rt3.hpp"

namespace {

constexpr int kThreads = 8, kRounds = 40;
constexpr int64_t kLength = 12;

struct Call {
  std::vector<int64_t> tokens = std::vector<int64_t>(kLength, 7);
  std::vector<float> values;
  rt3_tensor in, out;

  explicit Call(int64_t hidden) : values(static_cast<size_t>(kLength * hidden)) {
    in = rt3_tensor{"input_ids", RT3_INT64, 2, {1, kLength}, tokens.data(), 0};
    out = rt3_tensor{"last_hidden_state", RT3_FLOAT32, 0, {}, values.data(), values.size() * sizeof(float)};
  }
  rt3_status run(rt3_model *model) { return rt3_run(model, &in, 1, &out, 1); }
};

}  // namespace

int main() {
  rt3::Model shared;
  rt3_tensor_info info;
  rt3::check(rt3_output(shared.get(), 0, &info));
  const int64_t hidden = info.axes[2];
  std::vector<std::vector<float>> expected;
  for (int level = 0; level < shared.levels(); ++level) {
    Call call(hidden);
    shared.set_level(level);
    rt3::check(call.run(shared.get()));
    expected.push_back(call.values);
  }
  std::atomic<int> wrong{0}, shared_runs{0}, busy{0};
  auto work = [&](int thread) {
    rt3::Model own;
    Call call(hidden);
    for (int round = 0; round < kRounds; ++round) {
      const int level = (thread + round) % own.levels();
      own.set_level(level);
      shared.set_frequency(shared.level_info((thread * round) % own.levels()).frequency_hz);
      rt3::check(call.run(own.get()));
      if (call.values != expected[static_cast<size_t>(level)]) ++wrong;
      const rt3_status status = call.run(shared.get());
      if (status == RT3_ERROR_BUSY) {
        ++busy;
        continue;
      }
      rt3::check(status);
      ++shared_runs;
      bool known = false;
      for (const auto &one : expected) known = known || call.values == one;
      if (!known) ++wrong;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work, i);
  for (auto &thread : threads) thread.join();
  std::printf("wrong %d, shared runs %d, busy %d\n", wrong.load(), shared_runs.load(), busy.load());
  return wrong.load() == 0 && shared_runs.load() > 0 ? 0 : 1;
}
