// A level that one thread sets by hand while another runs under `auto` stays, whatever the governor is about to choose.
// Argument: a folder that stands for /sys, whose clock is a pipe: who has opened it to write knows that a run has begun
// to read, and that the run goes on when it is told the clock.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "rt3.hpp"

namespace {

constexpr int kRounds = 30;

std::string pipe_name;

int reader_is_there() { return open(pipe_name.c_str(), O_WRONLY); }

void tell_clock(int pipe, const char *khz) {
  if (write(pipe, khz, std::strlen(khz)) < 0) std::perror("write");
  close(pipe);
}

void run(rt3::Model &model) {
  int64_t token = 7;
  const rt3_tensor in = {"input_ids", RT3_INT64, 2, {1, 1}, &token, 0};
  rt3::check(rt3_run(model.get(), &in, 1, nullptr, 0));
}

void follow(rt3::Model &model, const rt3_auto_options &options) {
  std::thread teller([] { tell_clock(reader_is_there(), "1400000\n"); });
  model.set_auto(options);
  teller.join();
}

}  // namespace

int main(int, char **argv) {
  const std::string root = argv[1];
  pipe_name = root + "/devices/system/cpu/cpufreq/policy0/scaling_cur_freq";
  rt3::Model model;
  rt3_auto_options options = {};
  options.sysfs_root = root.c_str();
  options.poll_s = options.dwell_s = 1e-9;
  int lost = 0, followed = 0;
  for (int round = 0; round < kRounds; ++round) {
    follow(model, options);
    std::thread runner([&] { run(model); });
    const int pipe = reader_is_there();
    const int by_hand = round % (model.levels() + 1);  // the last: none
    if (by_hand < model.levels()) model.set_level(by_hand);
    tell_clock(pipe, "800000\n");  // asks for the sparsest level
    runner.join();
    if (by_hand < model.levels()) {
      lost += model.level() != by_hand;
      run(model);  // does not read the clock any more: it would wait for ever
      lost += model.level() != by_hand;
    } else {
      followed += model.level() == model.levels() - 1;
    }
  }
  std::printf("lost %d, followed %d\n", lost, followed);
  return lost == 0 && followed == kRounds / (model.levels() + 1) ? 0 : 1;
}
