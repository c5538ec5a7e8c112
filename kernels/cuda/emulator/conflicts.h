// How often the lanes of a warp meet in a bank of shared memory, by kernel.
//
// A GPU serves a warp's request at once where its lanes touch different banks, or the same word; otherwise in as many
// turns as words meet in a bank. Fibers run apart, so a request is put together here: each lane's nth load, store or
// addition to an array since the lane last waited for others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace emulator {

/// What one thread has touched since it last waited for others.
class Accesses {
  public:
    enum Kind { load, store, add };

    void synchronised() {
        waits_++;
        counts_.clear();
    }

  private:
    friend class Conflicts;
    unsigned waits_ = 0;
    std::map<std::pair<const void *, Kind>, unsigned> counts_;
};

class Conflicts {
  public:
    Conflicts() : path_(std::getenv("EMULATOR_CONFLICTS")) {}

    ~Conflicts() {
        std::FILE *file = path_ ? std::fopen(path_, "w") : nullptr;
        if (!file) return;
        for (const auto &[name, sum] : kernels_)
            std::fprintf(file, "%s\t%llu\t%llu\t%u\n", name.c_str(), (unsigned long long)sum.requests,
                         (unsigned long long)sum.turns, sum.worst);
        std::fclose(file);
    }

    bool counts() const { return path_ != nullptr; }

    void begin(const char *kernel) { kernel_ = kernel; }

    /// A lane touches `size` bytes of an array.
    void touch(Accesses &lane, unsigned thread, const void *array, Accesses::Kind kind, size_t at, size_t size) {
        const unsigned number = lane.counts_[{array, kind}]++;
        auto &request = requests_[{thread / 32, lane.waits_, array, kind, number}];
        request.size = size;
        request.lanes.push_back({thread % 32, at});
    }

    /// Takes in the requests of a block that has ended.
    void count_block() {
        if (requests_.empty()) return;
        Sum &sum = kernels_[kernel_];
        for (const auto &[key, request] : requests_) {
            const auto [turns, least] = request.turns(std::get<3>(key) == Accesses::add);
            sum.requests += least;
            sum.turns += turns;
            sum.worst = std::max(sum.worst, (turns + least - 1) / least);
        }
        requests_.clear();
    }

  private:
    struct Request {
        size_t size = 0;
        std::vector<std::pair<unsigned, size_t>> lanes;

        /// Turns that it takes, and those that it would take without conflicts: 128 bytes each.
        std::pair<unsigned, unsigned> turns(bool adds) const {
            const unsigned at_once = 32 / unsigned(std::max<size_t>(1, size / 4));
            unsigned turns = 0, least = 0;
            for (unsigned first = 0; first < 32; first += at_once) {
                std::vector<size_t> words[32];
                unsigned most = 0;
                for (const auto &[lane, at] : lanes) {
                    if (lane < first || lane >= first + at_once) continue;
                    for (size_t word = at / 4; word * 4 < at + size; word++) {
                        auto &bank = words[word % 32];
                        // Additions to a word wait for each other, other accesses share it.
                        if (adds || std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
                        most = std::max(most, unsigned(bank.size()));
                    }
                }
                turns += most;
                least += most > 0;
            }
            return {turns, least};
        }
    };
    struct Sum {
        uint64_t requests = 0, turns = 0;
        unsigned worst = 0;
    };

    const char *path_;
    std::string kernel_;
    /// By warp, waits, array, kind and number.
    std::map<std::tuple<unsigned, unsigned, const void *, Accesses::Kind, unsigned>, Request> requests_;
    std::map<std::string, Sum> kernels_;
};

inline Conflicts conflicts;

}  // namespace emulator
