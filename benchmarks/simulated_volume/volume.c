/*
 * A folder seen as a network volume: a FUSE pass-through that adds the delays of one.
 *
 * Every metadata call (look up, stat, list, open, create, rename, ...) waits for --metadata-ms.
 * Every read waits for --read-ms plus its turn on two lines: one of --stream-mb a second for each
 * open file, one of --total-mb a second for all. All files that are being read take turns, so each
 * read also waits for as many bytes of every other. --server-ms of the latency is the server's
 * work, done for one read of a file after another; the rest is the network's, and reads that the
 * kernel sends together wait for it together. Writes are only passed through.
 * The kernel's page cache works as on any file system; names and attributes are cached for
 * --attr-seconds (the default of MooseFS' and NFS' clients is 1 to 3 s).
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <getopt.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static struct {
    double metadata_ms, read_ms, server_ms, stream_mb, total_mb, attr_seconds;
    int read_ahead_kb, threads;
} model = {1.5, 0.3, 0.06, 400, 1500, 1, 128, 192};

enum { PAGE = 4096 };
static int source = -1;

/* A line that carries bytes one after another; it is idle again at `free_at`. */
struct line {
    pthread_mutex_t lock;
    int64_t free_at;
};
static struct line all = {PTHREAD_MUTEX_INITIALIZER, 0};
static _Atomic int being_read; /* open files with a read under way */

struct open_file {
    int fd;
    int unbuffered; /* the same file, bypassing the page cache, or -1: see read_past_memory */
    struct line line;
    _Atomic int reads; /* under way */
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sleep_until(int64_t when) {
    struct timespec t = {when / 1000000000LL, when % 1000000000LL};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
}

static void metadata_call(void) {
    if (model.metadata_ms > 0) sleep_until(now_ns() + (int64_t)(model.metadata_ms * 1e6));
}

/* Queue what takes `cost` ns on a line; returns when it will be through. */
static int64_t send_over(struct line *line, double cost, int64_t from) {
    pthread_mutex_lock(&line->lock);
    int64_t start = line->free_at > from ? line->free_at : from;
    int64_t end = line->free_at = start + (int64_t)cost;
    pthread_mutex_unlock(&line->lock);
    return end;
}

static double ns_for(size_t size, double mb) { return mb > 0 ? size * 1e3 / mb : 0; }

static void read_call(struct open_file *file, size_t size, int64_t from) {
    if (file->reads++ == 0) being_read++;
    double turn = ns_for(size, model.total_mb);
    double own_cost = model.server_ms * 1e6 + ns_for(size, model.stream_mb) + being_read * turn;
    int64_t own = send_over(&file->line, own_cost, from);
    int64_t shared = send_over(&all, turn, from);
    int64_t end = own > shared ? own : shared;
    sleep_until(end + (int64_t)((model.read_ms - model.server_ms) * 1e6));
    if (--file->reads == 0) being_read--;
}

static const char *inside(const char *path) { return path[1] ? path + 1 : "."; }
static int result(int r) { return r < 0 ? -errno : 0; }
static struct open_file *opened(struct fuse_file_info *fi) {
    return (struct open_file *)(uintptr_t)fi->fh;
}

static int v_getattr(const char *path, struct stat *st, struct fuse_file_info *fi) {
    metadata_call();
    if (fi && fi->fh) return result(fstat(opened(fi)->fd, st));
    return result(fstatat(source, inside(path), st, AT_SYMLINK_NOFOLLOW));
}

static int v_readlink(const char *path, char *text, size_t size) {
    metadata_call();
    ssize_t n = readlinkat(source, inside(path), text, size - 1);
    if (n < 0) return -errno;
    text[n] = 0;
    return 0;
}

static int v_mkdir(const char *path, mode_t mode) {
    metadata_call();
    return result(mkdirat(source, inside(path), mode));
}

static int v_unlink(const char *path) {
    metadata_call();
    return result(unlinkat(source, inside(path), 0));
}

static int v_rmdir(const char *path) {
    metadata_call();
    return result(unlinkat(source, inside(path), AT_REMOVEDIR));
}

static int v_symlink(const char *text, const char *path) {
    metadata_call();
    return result(symlinkat(text, source, inside(path)));
}

static int v_rename(const char *from, const char *to, unsigned flags) {
    metadata_call();
    return result(renameat2(source, inside(from), source, inside(to), flags));
}

static int v_link(const char *from, const char *to) {
    metadata_call();
    return result(linkat(source, inside(from), source, inside(to), 0));
}

static int v_chmod(const char *path, mode_t mode, struct fuse_file_info *fi) {
    (void)fi;
    metadata_call();
    return result(fchmodat(source, inside(path), mode, 0));
}

static int v_chown(const char *path, uid_t uid, gid_t gid, struct fuse_file_info *fi) {
    (void)fi;
    metadata_call();
    return result(fchownat(source, inside(path), uid, gid, AT_SYMLINK_NOFOLLOW));
}

static int v_truncate(const char *path, off_t size, struct fuse_file_info *fi) {
    metadata_call();
    if (fi && fi->fh) return result(ftruncate(opened(fi)->fd, size));
    int fd = openat(source, inside(path), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    int r = result(ftruncate(fd, size));
    close(fd);
    return r;
}

static int v_utimens(const char *path, const struct timespec t[2], struct fuse_file_info *fi) {
    (void)fi;
    metadata_call();
    return result(utimensat(source, inside(path), t, AT_SYMLINK_NOFOLLOW));
}

static int past_the_page_cache(int fd) {
    char same[32];
    snprintf(same, sizeof same, "/proc/self/fd/%d", fd);
    return open(same, O_RDONLY | O_DIRECT | O_CLOEXEC);
}

static int keep_open(int fd, struct fuse_file_info *fi) {
    if (fd < 0) return -errno;
    struct open_file *file = calloc(1, sizeof *file);
    if (!file) {
        close(fd);
        return -ENOMEM;
    }
    file->fd = fd;
    file->unbuffered = past_the_page_cache(fd);
    pthread_mutex_init(&file->line.lock, NULL);
    fi->fh = (uint64_t)(uintptr_t)file;
    return 0;
}

static int v_open(const char *path, struct fuse_file_info *fi) {
    metadata_call();
    return keep_open(openat(source, inside(path), (fi->flags & ~O_NOFOLLOW) | O_CLOEXEC), fi);
}

static int v_create(const char *path, mode_t mode, struct fuse_file_info *fi) {
    metadata_call();
    return keep_open(openat(source, inside(path), fi->flags | O_CREAT | O_CLOEXEC, mode), fi);
}

/* A volume's server caches in its own memory, not in its client's: page-aligned reads bypass the
 * page cache where the file system allows it. */
static ssize_t read_past_memory(struct open_file *file, void *memory, size_t size, off_t at) {
    if (file->unbuffered >= 0 && (size | at) % PAGE == 0) {
        ssize_t n = pread(file->unbuffered, memory, size, at);
        if (n >= 0) return n;
    }
    return pread(file->fd, memory, size, at);
}

static int v_read_buf(const char *path, struct fuse_bufvec **answer, size_t size, off_t at,
                      struct fuse_file_info *fi) {
    (void)path;
    int64_t from = now_ns();
    struct fuse_bufvec *vector = malloc(sizeof *vector);
    void *memory = NULL;
    if (!vector || posix_memalign(&memory, PAGE, size)) {
        free(vector);
        return -ENOMEM;
    }
    ssize_t n = read_past_memory(opened(fi), memory, size, at);
    if (n < 0) {
        int r = -errno;
        free(memory);
        free(vector);
        return r;
    }
    read_call(opened(fi), (size_t)n, from);
    *vector = FUSE_BUFVEC_INIT((size_t)n);
    vector->buf[0].mem = memory; /* libfuse frees both */
    *answer = vector;
    return 0;
}

static int v_write(const char *path, const char *data, size_t size, off_t at,
                   struct fuse_file_info *fi) {
    (void)path;
    ssize_t n = pwrite(opened(fi)->fd, data, size, at);
    return n < 0 ? -errno : (int)n;
}

static int v_fsync(const char *path, int data_only, struct fuse_file_info *fi) {
    (void)path;
    metadata_call();
    return result(data_only ? fdatasync(opened(fi)->fd) : fsync(opened(fi)->fd));
}

static int v_fallocate(const char *path, int mode, off_t at, off_t size,
                       struct fuse_file_info *fi) {
    (void)path;
    metadata_call();
    return result(fallocate(opened(fi)->fd, mode, at, size));
}

static int v_release(const char *path, struct fuse_file_info *fi) {
    (void)path;
    if (opened(fi)->unbuffered >= 0) close(opened(fi)->unbuffered);
    close(opened(fi)->fd);
    pthread_mutex_destroy(&opened(fi)->line.lock);
    free(opened(fi));
    return 0;
}

static int v_statfs(const char *path, struct statvfs *st) {
    (void)path;
    metadata_call();
    return result(fstatvfs(source, st));
}

static int v_opendir(const char *path, struct fuse_file_info *fi) {
    metadata_call();
    int fd = openat(source, inside(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -errno;
    DIR *folder = fdopendir(fd);
    if (!folder) {
        close(fd);
        return -ENOMEM;
    }
    fi->fh = (uint64_t)(uintptr_t)folder;
    return 0;
}

static int v_readdir(const char *path, void *list, fuse_fill_dir_t add, off_t at,
                     struct fuse_file_info *fi, enum fuse_readdir_flags flags) {
    (void)path, (void)at, (void)flags;
    metadata_call();
    DIR *folder = (DIR *)(uintptr_t)fi->fh;
    rewinddir(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        struct stat st = {.st_ino = entry->d_ino, .st_mode = (mode_t)entry->d_type << 12};
        if (add(list, entry->d_name, &st, 0, 0)) break;
    }
    return 0;
}

static int v_releasedir(const char *path, struct fuse_file_info *fi) {
    (void)path;
    closedir((DIR *)(uintptr_t)fi->fh);
    return 0;
}

static void *v_init(struct fuse_conn_info *connection, struct fuse_config *config) {
    config->use_ino = 1;
    config->nullpath_ok = 0;
    config->entry_timeout = config->attr_timeout = model.attr_seconds;
    config->negative_timeout = 0;
    /* Pages outlive a close, as on network file systems; the kernel drops them itself when it sees
     * that a file's time or size has changed. */
    config->kernel_cache = 1;
    /* Attributes do not come with names: each stat is a call, which is what is simulated. */
    connection->want &= ~(FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO);
    /* So the kernel asks about one name of a folder at a time, in different folders at once. That
     * is what FUSE clients get unless they ask for more, and before libfuse 3.17 even then (its
     * pull requests 861 and 880). A walk that is fast here is fast with either. */
    connection->want &= ~FUSE_CAP_PARALLEL_DIROPS;
    connection->max_readahead = (unsigned)model.read_ahead_kb * 1024;
    connection->max_background = (unsigned)model.threads;
    connection->congestion_threshold = (unsigned)model.threads;
    return NULL;
}

static const struct fuse_operations operations = {
    .init = v_init,           .getattr = v_getattr,   .readlink = v_readlink,
    .mkdir = v_mkdir,         .unlink = v_unlink,     .rmdir = v_rmdir,
    .symlink = v_symlink,     .rename = v_rename,     .link = v_link,
    .chmod = v_chmod,         .chown = v_chown,       .truncate = v_truncate,
    .utimens = v_utimens,     .open = v_open,         .create = v_create,
    .read_buf = v_read_buf,   .write = v_write,       .fsync = v_fsync,
    .fallocate = v_fallocate, .release = v_release,   .statfs = v_statfs,
    .opendir = v_opendir,     .readdir = v_readdir,   .releasedir = v_releasedir,
};

static const struct option known[] = {
    {"metadata-ms", required_argument, NULL, 'm'},   {"read-ms", required_argument, NULL, 'r'},
    {"server-ms", required_argument, NULL, 'w'},
    {"stream-mb", required_argument, NULL, 's'},     {"total-mb", required_argument, NULL, 't'},
    {"read-ahead-kb", required_argument, NULL, 'a'}, {"attr-seconds", required_argument, NULL, 'c'},
    {"threads", required_argument, NULL, 'n'},       {NULL, 0, NULL, 0},
};

static int usage(const char *self) {
    fprintf(stderr,
            "usage: %s [--metadata-ms 1.5] [--read-ms 0.3] [--server-ms 0.06]\n"
            "       [--stream-mb 400] [--total-mb 1500] [--read-ahead-kb 128] [--attr-seconds 1]\n"
            "       [--threads 192] SOURCE MOUNTPOINT\n"
            "Serves SOURCE at MOUNTPOINT in the foreground until unmounted. 0 MB is no limit.\n",
            self);
    return 2;
}

int main(int argc, char **argv) {
    for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (o == '?') return usage(argv[0]);
        double value = atof(optarg);
        if (o == 'm') model.metadata_ms = value;
        if (o == 'r') model.read_ms = value;
        if (o == 'w') model.server_ms = value;
        if (o == 's') model.stream_mb = value;
        if (o == 't') model.total_mb = value;
        if (o == 'a') model.read_ahead_kb = (int)value;
        if (o == 'c') model.attr_seconds = value;
        if (o == 'n') model.threads = (int)value;
    }
    if (argc - optind != 2 || model.threads < 1) return usage(argv[0]);
    source = open(argv[optind], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (source < 0) {
        perror(argv[optind]);
        return 1;
    }
    umask(0);
    /* Keep read buffers for reuse; do not return them to the kernel and fault them in again. */
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_ARENA_MAX, 4);
    /* Threads inherit this: without it every sleep is 50 us too long (prctl(2)). */
    prctl(PR_SET_TIMERSLACK, 1);
    char threads[96];
    int n = snprintf(threads, sizeof threads, "max_idle_threads=%d", model.threads);
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 12) /* before, there was no limit to raise */
    snprintf(threads + n, sizeof threads - n, ",max_threads=%d", model.threads);
#endif
    char shared[] = "default_permissions,fsname=simulated-volume,subtype=simulated,allow_other";
    if (geteuid() != 0) *strstr(shared, ",allow_other") = 0; /* root's unless fuse.conf says so */
    char *options[] = {argv[0], "-f", "-o", threads, "-o", shared, argv[optind + 1]};
    return fuse_main((int)(sizeof options / sizeof *options), options, &operations, NULL);
}
