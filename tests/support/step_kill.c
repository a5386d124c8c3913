/*
 * Lets a process take so many single instructions, and kills it there: death between issuing and replying (F11).
 *
 *     step_kill PID
 *
 * Stops the process's main thread, says "stopped", reads a number, steps that often, kills the process by SIGKILL, says
 * "killed" and ends. Its other threads go on until the kill. A process that it cannot trace: exit status 77.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#define CANNOT 77

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Returns 0 when the process has ended. */
static int await_stop(pid_t pid) {
    int status;
    if (waitpid(pid, &status, __WALL) != pid) {
        fail("waitpid");
    }
    return WIFSTOPPED(status);
}

static void step(pid_t pid, long steps) {
    for (long i = 0; i < steps; i++) {
        if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) != 0) {
            fail("PTRACE_SINGLESTEP");
        }
        if (!await_stop(pid)) {
            return;
        }
    }
}

int main(int argc, char **argv) {
    long steps;
    pid_t pid = argc == 2 ? (pid_t)strtol(argv[1], NULL, 10) : 0;
    if (pid <= 0) {
        return 1;
    }
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) != 0) {
        return errno == EPERM ? CANNOT : 1;
    }
    if (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) != 0 || !await_stop(pid)) {
        return 1;
    }
    puts("stopped");
    fflush(stdout);
    if (scanf("%ld", &steps) == 1) {
        step(pid, steps);
        kill(pid, SIGKILL);
    }
    puts("killed");
    return 0;
}
