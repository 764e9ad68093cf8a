/* What both fake libraries share: their answers come from variables named CUDA_FAKE_*. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_MB 24576

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static long number(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value && *value ? strtol(value, NULL, 0) : otherwise;
}

/* CUDA_FAKE_HANG=call, CUDA_FAKE_CRASH=call, CUDA_FAKE_FAIL=call:code; else 0. */
static int fault(const char *call) {
    const char *fail = setting("CUDA_FAKE_FAIL", "");
    size_t length = strlen(call);
    if (!strcmp(setting("CUDA_FAKE_HANG", ""), call))
        for (;;) pause();
    if (!strcmp(setting("CUDA_FAKE_CRASH", ""), call)) abort();
    if (!strncmp(fail, call, length) && fail[length] == ':') return atoi(fail + length + 1);
    return 0;
}

#define FAULT() do { int code = fault(__func__); if (code) return code; } while (0)
