/* Preloaded into a process, this shifts its wall clock by SKEWED_CLOCK_SECONDS. Clocks that only count stay right.

   SQLite keeps the time: it is the database, whose clock is the machine's, in whatever process it is opened. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t offset_for(void *caller)
{
    static const char *text;
    Dl_info place;

    if (text == NULL && (text = getenv("SKEWED_CLOCK_SECONDS")) == NULL)
        text = "0";
    if (dladdr(caller, &place) != 0 && place.dli_fname != NULL && strstr(place.dli_fname, "sqlite") != NULL)
        return 0;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);

    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset_for(__builtin_return_address(0));
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = (int)syscall(SYS_gettimeofday, now, zone);

    if (!failed)
        now->tv_sec += offset_for(__builtin_return_address(0));
    return failed;
}

time_t time(time_t *result)
{
    struct timespec now;

    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    now.tv_sec += offset_for(__builtin_return_address(0));
    if (result != NULL)
        *result = now.tv_sec;
    return now.tv_sec;
}
