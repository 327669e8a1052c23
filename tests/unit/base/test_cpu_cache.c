/* daemon/base/cpu_cache.c: whatever is written back, the bytes stay, and none beside them are touched. */
#include "daemon/base/cpu_cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* A page between two that nobody may touch: an instruction for a line of those ends the test. */
static uint8_t *lone_page(size_t *ret_bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *pages = mmap(NULL, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    assert_int_equal(mprotect(pages + page, page, PROT_READ | PROT_WRITE), 0);
    *ret_bytes = page;
    return pages + page;
}

static void test_bytes_stay(void **state)
{
    (void)state;
    size_t bytes;
    uint8_t *page = lone_page(&bytes);
    for (size_t i = 0; i < bytes; i++)
        page[i] = (uint8_t)(i * 7);
    for (size_t begin = 0; begin < 130; begin++)
        for (size_t n = 0; n < 130; n++)
            cpu_cache_write_back(page + begin, n);
    cpu_cache_write_back(page, bytes);
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(page[i], (uint8_t)(i * 7));
    munmap(page - bytes, 3 * bytes);
}

static void test_ends(void **state)
{
    (void)state;
    size_t bytes;
    uint8_t *page = lone_page(&bytes);
    for (size_t n = 0; n < 200; n++) {
        cpu_cache_write_back(page, n);
        cpu_cache_write_back(page + bytes - n, n);
    }
    cpu_cache_write_back(page + bytes, 0); /* nothing, and there is nothing */
    munmap(page - bytes, 3 * bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_stay),
        cmocka_unit_test(test_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
