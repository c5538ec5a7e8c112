// Runs the kernel tests, with the arguments `[--seed N] [name part ...]`. Prints the seed, so that a failure can be
// repeated.

#include <algorithm>
#include <chrono>
#include <cstdarg>

#include "harness.h"
Launches launches;

uint64_t random_state = 1;

std::vector<Test> &tests() {
    static std::vector<Test> all;
    return all;
}

std::string format(const char *pattern, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, pattern);
    std::vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

static const char *running = "";

void test_failed(const char *file, int line, const std::string &what) {
    std::fprintf(stderr, "FAILED %s, %s:%d: %s\n", running, file, line, what.c_str());
    std::exit(1);
}

void check_close(double got, double want, double tolerance, const std::string &where) {
    if (!(std::fabs(got - want) <= tolerance))
        test_failed("check", 0, format("%s: got %.9g, want %.9g within %.3g", where.c_str(), got, want, tolerance));
}

extern "C" int pleach_main(const Launches *given, int count, const char *const *arguments) {
    launches = *given;
    uint64_t seed = uint64_t(std::chrono::system_clock::now().time_since_epoch().count());
    std::vector<std::string> wanted;
    for (int i = 0; i < count; i++) {
        const std::string argument = arguments[i];
        if (argument == "--seed" && i + 1 < count) seed = std::strtoull(arguments[++i], nullptr, 10);
        else wanted.push_back(argument);
    }
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    int ran = 0;
    for (const Test &test : tests()) {
        const auto names = [&](const std::string &part) { return std::strstr(test.name, part.c_str()) != nullptr; };
        if (!wanted.empty() && std::none_of(wanted.begin(), wanted.end(), names)) continue;
        running = test.name;
        random_state = seed;
        const auto start = std::chrono::steady_clock::now();
        test.run();
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        std::printf("ok %s (%.2f s)\n", test.name, took.count());
        std::fflush(stdout);
        ran++;
    }
    if (ran == 0) {
        std::fprintf(stderr, "no test has that name\n");
        return 1;
    }
    return 0;
}
