// A level that one thread sets by hand while another runs under `auto` stays, whatever the governor is about to choose.
// Argument: a folder that stands for /sys, whose clock this program writes.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "rt3.hpp"

namespace {

constexpr int kRounds = 300;

void set_clock(const std::string &root, long khz) {
  std::ofstream(root + "/devices/system/cpu/cpufreq/policy0/scaling_cur_freq") << khz << '\n';
}

}  // namespace

int main(int, char **argv) {
  const std::string root = argv[1];
  rt3::Model model;
  model.set_threads(1);
  std::atomic<bool> stop{false};
  std::atomic<long> runs{0};
  std::thread runner([&] {
    int64_t token = 7;
    const rt3_tensor in = {"input_ids", RT3_INT64, 2, {1, 1}, &token, 0};
    while (!stop) {
      const rt3_status status = rt3_run(model.get(), &in, 1, nullptr, 0);
      if (status != RT3_ERROR_BUSY) rt3::check(status);
      ++runs;
      std::this_thread::sleep_for(
          std::chrono::microseconds(20));  // or rt3_set_auto would find the handle busy for ever
    }
  });
  rt3_auto_options options = {};
  options.sysfs_root = root.c_str();
  options.poll_s = options.dwell_s = 1e-9;
  int lost = 0;
  for (int round = 0; round < kRounds; ++round) {
    set_clock(root, 1400000);
    while (rt3_set_auto(model.get(), &options) == RT3_ERROR_BUSY) std::this_thread::yield();
    set_clock(root, 800000);  // the next run wants level 2
    for (volatile int spin = 0; spin < (round * 37) % 2000; ++spin) continue;
    const int by_hand = round % model.levels();
    model.set_level(by_hand);
    for (const long seen = runs; runs < seen + 3;) std::this_thread::yield();
    if (model.level() != by_hand) ++lost;
  }
  stop = true;
  runner.join();
  std::printf("lost %d of %d\n", lost, kRounds);
  return lost == 0 ? 0 : 1;
}
