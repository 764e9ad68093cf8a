/* A fake libnvidia-ml.so.1; a device's handle is its index plus one. */
#include "fake.h"

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } Process;

int nvmlInit_v2(void) { FAULT(); return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    FAULT();
    snprintf(text, size, "%s", setting("CUDA_FAKE_DRIVER", "570.124.06"));
    return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    FAULT();
    *version = (int)number("CUDA_FAKE_CUDA", 12080);
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned *count) { FAULT(); *count = number("CUDA_FAKE_DEVICES", 1); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, size_t *handle) {
    FAULT();
    if ((long)index == number("CUDA_FAKE_LOST", -1)) return 15;
    *handle = index + 1;
    return 0;
}
int nvmlDeviceGetName(size_t device, char *text, unsigned size) {
    FAULT();
    snprintf(text, size, "%s", setting("CUDA_FAKE_NAME", "NVIDIA Fake 4090"));
    return 0;
}
int nvmlDeviceGetUUID(size_t device, char *text, unsigned size) {
    unsigned b = (unsigned)device;
    FAULT();
    snprintf(text, size, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             b, b, b, b, b, b, b, b, b, b, b, b, b, b, b, b);
    return 0;
}
int nvmlDeviceGetMemoryInfo(size_t device, Memory *memory) {
    FAULT();
    memory->total = (unsigned long long)number("CUDA_FAKE_TOTAL_MB", DEFAULT_MB) << 20;
    memory->used = (unsigned long long)number("CUDA_FAKE_USED_MB", 400) << 20;
    memory->free = memory->total - memory->used;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(size_t device, int *major, int *minor) {
    FAULT();
    *major = (int)number("CUDA_FAKE_MAJOR", 8);
    *minor = (int)number("CUDA_FAKE_MINOR", 9);
    return 0;
}
int nvmlDeviceGetTotalEccErrors(size_t device, unsigned kind, unsigned counter, unsigned long long *errors) {
    FAULT();
    if (number("CUDA_FAKE_ECC", -1) < 0) return 3;
    *errors = kind == 1 && counter == 0 ? number("CUDA_FAKE_ECC", 0) : 0;
    return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(size_t device, unsigned long long *reasons) {
    FAULT();
    *reasons = number("CUDA_FAKE_THROTTLE", 0);
    return 0;
}
int nvmlDeviceGetTemperature(size_t device, unsigned sensor, unsigned *celsius) {
    FAULT();
    *celsius = number("CUDA_FAKE_TEMPERATURE", 41);
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(size_t device, unsigned *count, Process *processes) {
    unsigned found = 0;
    FAULT();
    for (const char *list = setting("CUDA_FAKE_PIDS", ""); *list && found < *count; found++) {
        processes[found].pid = (unsigned)strtol(list, (char **)&list, 10);
        processes[found].used = found ? ~0ULL : 5ULL << 30;
        if (*list == ',') list++;
    }
    *count = found;
    return 0;
}
