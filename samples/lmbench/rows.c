/* The loops behind rows of LMbench, written anew, for the samples of `nestwalk reproduce lmbench`.
 *
 * rows LOOP WARM COUNT [FILE]: WARM times, then the region of interest with COUNT times, then the end
 * of the recording. What a row subtracts is a loop of its own; data/lmbench.toml puts them together.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define FAULT_BYTES (2ul << 20) /* the file of the page faults: one leaf table */
#define MAP_BYTES (20ul << 20)  /* the file of the mappings: 128 pages of its tenth are stored to */
#define TOUCH_BYTES (256ul << 10) /* anonymous memory */
#define PLACE ((void *)(1ul << 40)) /* where mappings are made: the beginning of a leaf table */

/* nopl 0xf5a0000N(%rax): 3 begins the region of interest, 2 ends the recording */
#define BEGIN() __asm__ volatile(".byte 0x0f, 0x1f, 0x80, 3, 0, 0xa0, 0xf5" ::: "memory")
#define END() __asm__ volatile(".byte 0x0f, 0x1f, 0x80, 2, 0, 0xa0, 0xf5" ::: "memory")

static long warm, left;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Calls `one` WARM times, then COUNT times. */
static void repeat(void (*one)(void)) {
    for (long i = 0; i < warm; i++)
        one();
    BEGIN();
    for (long i = 0; i < left; i++)
        one();
    END();
}

static int zero, null;

static void system_call(void) { syscall(SYS_getppid); }

/* Null I/O is the mean of these two: one iteration is half of them. */
static void read_and_write(void) {
    char c;
    if (read(zero, &c, 1) != 1 || write(null, &c, 1) != 1)
        fail("null I/O");
}

static fd_set descriptors;
static int highest;

static void select_ready(void) {
    fd_set ready = descriptors;
    struct timeval none = {0, 0};
    select(highest + 1, NULL, &ready, NULL, &none);
}

static void open_descriptors(void) {
    int file = open("descriptors", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < 100; i++) {
        int copy = dup(file);
        if (copy < 0)
            fail("dup");
        FD_SET(copy, &descriptors);
        highest = copy;
    }
    close(file);
}

static void nothing(int signal) { (void)signal; }

static pid_t self;

static void send(void) { kill(self, 0); }

static void catch(void) { kill(self, SIGUSR1); }

static void on(int signal, void (*handler)(int)) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    sigaction(signal, &action, NULL);
}

/* Returns to the store that faulted, which faults again. */
static void protected(int signal) {
    (void)signal;
    if (warm > 0) {
        if (--warm == 0)
            BEGIN();
    } else if (left > 0) {
        if (--left == 0) {
            END();
            _exit(0);
        }
    }
}

/* A store to a file that is mapped read-only. */
static void protection(const char *name) {
    int file = open(name, O_RDONLY);
    volatile char *page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED)
        fail("mmap");
    on(SIGSEGV, protected);
    *page = 1;
}

static int file;
static volatile char *mapped;
static uint16_t order[FAULT_BYTES / PAGE];
static int touches;

/* A file of `bytes`, of which the first part is in the page cache. */
static void make_file(size_t bytes, size_t part) {
    static char block[1 << 16];
    file = open("pages", O_RDWR | O_CREAT, 0600);
    for (size_t i = 0; i < part; i += sizeof block)
        if (write(file, block, sizeof block) != (ssize_t)sizeof block)
            fail("write");
    if (ftruncate(file, (off_t)bytes) != 0)
        fail("ftruncate");
}

static void map_pages(void) {
    mapped = mmap(PLACE, FAULT_BYTES, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0);
    if (mapped == MAP_FAILED || msync((void *)mapped, FAULT_BYTES, MS_INVALIDATE) != 0)
        fail("mmap");
}

/* Every page once, in random order; then the mapping is made anew. */
static void fault_pages(void) {
    if (touches)
        for (size_t i = 0; i < FAULT_BYTES / PAGE; i++)
            (void)mapped[order[i] * PAGE];
    munmap((void *)mapped, FAULT_BYTES);
    map_pages();
}

static void shuffle(void) {
    uint64_t state = 1;
    for (size_t i = 0; i < FAULT_BYTES / PAGE; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        size_t j = (state >> 33) % (i + 1);
        order[i] = order[j];
        order[j] = (uint16_t)i;
    }
}

/* A tenth of the mapping is stored to, every 16 KiB. */
static void map_and_store(void) {
    char *where = mmap(PLACE, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    if (where == MAP_FAILED)
        fail("mmap");
    for (char *p = where; p < where + MAP_BYTES / 10; p += 4 * PAGE)
        *p = 1;
    munmap(where, MAP_BYTES);
}

/* Anonymous memory, page by page: no row of LMbench, but what a modelled guest's page faults are. */
static void touch(void) {
    char *where = mmap(PLACE, TOUCH_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (where == MAP_FAILED)
        fail("mmap");
    for (char *p = where; p < where + TOUCH_BYTES; p += PAGE)
        *p = 1;
    munmap(where, TOUCH_BYTES);
}

static const char *program, *shell;

/* A child that exits, runs the program, or has the shell run it. */
static void child(void) {
    pid_t pid = fork();
    if (pid < 0)
        fail("fork");
    if (pid == 0) {
        if (shell) {
            close(1);
            execl(shell, "sh", "-c", program, (char *)NULL);
        } else if (program) {
            close(1);
            execl(program, program, (char *)NULL);
        }
        exit(1);
    }
    waitpid(pid, NULL, 0);
}

int main(int count, char **words) {
    if (count < 4) {
        fprintf(stderr, "usage: rows LOOP WARM COUNT [PROGRAM [SHELL]]\n");
        return 2;
    }
    const char *loop = words[1];
    self = getpid();
    warm = atol(words[2]);
    left = atol(words[3]);
    program = count > 4 ? words[4] : NULL;
    shell = count > 5 ? words[5] : NULL;
    if (!strcmp(loop, "syscall")) {
        repeat(system_call);
    } else if (!strcmp(loop, "io")) {
        zero = open("/dev/zero", O_RDONLY);
        null = open("/dev/null", O_WRONLY);
        repeat(read_and_write);
    } else if (!strcmp(loop, "select")) {
        open_descriptors();
        repeat(select_ready);
    } else if (!strcmp(loop, "send")) {
        repeat(send);
    } else if (!strcmp(loop, "catch")) {
        on(SIGUSR1, nothing);
        repeat(catch);
    } else if (!strcmp(loop, "protection")) {
        protection(words[0]);
    } else if (!strcmp(loop, "faults") || !strcmp(loop, "remap")) {
        touches = !strcmp(loop, "faults");
        make_file(FAULT_BYTES, touches ? FAULT_BYTES : 0);
        shuffle();
        map_pages();
        repeat(fault_pages);
    } else if (!strcmp(loop, "map")) {
        make_file(MAP_BYTES, MAP_BYTES / 10);
        repeat(map_and_store);
    } else if (!strcmp(loop, "touch")) {
        repeat(touch);
    } else if (!strcmp(loop, "fork") || !strcmp(loop, "exec") || !strcmp(loop, "shell")) {
        repeat(child);
    } else {
        fprintf(stderr, "rows: no loop `%s`\n", loop);
        return 2;
    }
    return 0;
}
