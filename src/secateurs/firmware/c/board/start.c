/* The first instructions of a Cortex-M: vectors, memory, the floating point unit and vectors of the core where it has any, then main.
   What main prints and returns goes to the debugger or emulator (semihosting). */
#include <stdint.h>

extern uint32_t _data_from, _data, _data_end, _bss, _bss_end, _stack;
extern int main(void);

void sec_reset(void);
void sec_stop(void);
void sec_write(const char *text);

__attribute__((section(".vectors"), used)) static void *const sec_vectors[16] = {
    &_stack, (void *)sec_reset, (void *)sec_stop, (void *)sec_stop, (void *)sec_stop, (void *)sec_stop, (void *)sec_stop};

/* One request to the debugger. */
static void sec_ask(int32_t what, const void *with) {
    register int32_t r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = with;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

/* Prints a text. */
void sec_write(const char *text) {
    sec_ask(0x04, text);
}

static void sec_leave(int code) {
    const uint32_t with[2] = {0x20026, (uint32_t)code};
    sec_ask(0x20, with);
    for (;;) {
    }
}

__attribute__((noreturn)) void sec_reset(void) {
    const uint32_t *from = &_data_from;
    for (uint32_t *to = &_data; to < &_data_end;) *to++ = *from++;
    for (uint32_t *to = &_bss; to < &_bss_end;) *to++ = 0;
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20;
    __asm__ volatile("dsb\n\tisb");
#endif
    sec_leave(main());
    for (;;) {
    }
}

/* A fault ends the run. */
void sec_stop(void) {
    sec_leave(86);
}
