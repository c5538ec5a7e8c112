// As much of NVML as says how much energy a GPU has used: one GPU, which uses five joules between two readings.

#include <atomic>

extern "C" {

int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 1;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    static int gpu;
    *device = &gpu;
    return index == 0 ? 0 : 2;  // NVML_ERROR_INVALID_ARGUMENT
}

int nvmlDeviceGetTotalEnergyConsumption(void *, unsigned long long *millijoules) {
    static std::atomic<unsigned long long> meter{1'000'000};
    *millijoules = meter += 5000;
    return 0;
}
}
