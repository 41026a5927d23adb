// A C++ app that links a bundle: it runs every level on the same tokens and prints what it sees.
//
//   c++ -std=c++17 app.cpp -I "$(rt3 sdk)" bundle.so -Wl,-rpath,'$ORIGIN' -o app
//   ./app [RESULTS]      RESULTS gets the first output of every level as raw float32
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <numeric>
#include <vector>

#include "rt3.hpp"

namespace {

constexpr int64_t kLength = 20;

// The same tokens on every machine, whatever its library's random numbers are.
std::vector<int64_t> make_tokens(int64_t limit) {
  std::vector<int64_t> tokens(kLength);
  uint32_t state = 12345;
  for (auto &token : tokens) {
    state = state * 1664525u + 1013904223u;
    token = static_cast<int64_t>(state >> 8) % limit;
  }
  return tokens;
}

int run(const char *results) {
  rt3::Model model;
  rt3_tensor_info input, output;
  rt3::check(rt3_input(model.get(), 0, &input));
  rt3::check(rt3_output(model.get(), 0, &output));
  const int64_t length = std::min(kLength, rt3_max_length(model.get()));
  std::vector<int64_t> tokens = make_tokens(input.limit);

  int64_t size = 1;
  for (int32_t d = 0; d < output.rank; ++d)
    size *= output.axes[d] == RT3_AXIS_LENGTH ? length : output.axes[d] == RT3_AXIS_BATCH ? 1 : output.axes[d];
  std::vector<float> values(static_cast<size_t>(size));

  rt3_tensor in{input.name, RT3_INT64, 2, {1, length}, tokens.data(), tokens.size() * sizeof(int64_t)};
  rt3_tensor out{output.name, RT3_FLOAT32, 0, {}, values.data(), values.size() * sizeof(float)};
  std::ofstream file;
  if (results != nullptr) file.open(results, std::ios::binary);

  for (int level = 0; level < model.levels(); ++level) {
    const rt3_level_info info = model.level_info(level);
    model.set_frequency(info.frequency_hz);
    std::vector<rt3_tensor> outputs{out};
    const auto start = std::chrono::steady_clock::now();
    model.run({in}, outputs);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    const double sum = std::accumulate(values.begin(), values.end(), 0.0);
    std::printf("%.2f GHz: level %d, density %.3f, %s (%lld, %lld, %lld), sum %.4f, %.3f ms\n", info.frequency_hz / 1e9,
                model.level(), info.density, output.name, static_cast<long long>(outputs[0].shape[0]),
                static_cast<long long>(outputs[0].shape[1]), static_cast<long long>(outputs[0].shape[2]), sum,
                took.count());
    if (file) file.write(reinterpret_cast<const char *>(values.data()), static_cast<std::streamsize>(size * 4));
  }
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  try {
    return run(argc > 1 ? argv[1] : nullptr);
  } catch (const rt3::Error &error) {
    std::fprintf(stderr, "app: %s\n", error.what());
    return 1;
  }
}
