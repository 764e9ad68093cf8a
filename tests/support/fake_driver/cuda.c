/* A fake libcuda.so.1: one block of memory, devices whose UUID is their index plus one. */
#include "fake.h"

static unsigned char block[65536];
static int indices[64], count = 0;

static void visible(void) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    int devices = (int)number("CUDA_FAKE_DEVICES", 1);
    count = 0;
    if (!list) {
        for (; count < devices; count++) indices[count] = count;
        return;
    }
    for (; *list >= '0' && *list <= '9' && atoi(list) < devices; list++) {
        indices[count++] = (int)strtol(list, (char **)&list, 10);
        if (*list != ',') break;
    }
}

int cuInit(unsigned flags) {
    FAULT();
    visible();
    return count ? 0 : 100;
}
int cuDriverGetVersion(int *version) { FAULT(); *version = (int)number("CUDA_FAKE_CUDA", 12080); return 0; }
int cuDeviceGetCount(int *found) { FAULT(); *found = count; return 0; }
int cuDeviceGet(int *device, int ordinal) { FAULT(); *device = ordinal; return 0; }
int cuDeviceGetUuid(unsigned char *uuid, int device) {
    FAULT();
    memset(uuid, indices[device] + 1, 16);
    return 0;
}
int cuDeviceGetName(char *name, int size, int device) {
    FAULT();
    snprintf(name, size, "%s", setting("CUDA_FAKE_NAME", "NVIDIA Fake 4090"));
    return 0;
}
int cuDeviceTotalMem_v2(size_t *total, int device) {
    FAULT();
    *total = (size_t)number("CUDA_FAKE_TOTAL_MB", DEFAULT_MB) << 20;
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    FAULT();
    *value = attribute == 75 ? (int)number("CUDA_FAKE_MAJOR", 8) : (int)number("CUDA_FAKE_MINOR", 9);
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { FAULT(); *context = block; return 0; }
int cuCtxSetCurrent(void *context) { FAULT(); return context == block ? 0 : 201; }
int cuMemAlloc_v2(unsigned long long *pointer, size_t size) {
    FAULT();
    if (size > sizeof block) return 2;
    *pointer = (unsigned long long)(size_t)block;
    return 0;
}
int cuMemsetD8_v2(unsigned long long pointer, unsigned char value, size_t size) {
    FAULT();
    memset((void *)(size_t)pointer, value, size);
    if (number("CUDA_FAKE_WRONG_BYTES", 0)) block[size / 2] ^= 1;
    return 0;
}
int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t size) {
    FAULT();
    memcpy(to, (void *)(size_t)from, size);
    return 0;
}
int cuMemFree_v2(unsigned long long pointer) { FAULT(); return 0; }
