# The ticking guest: entered as tiny.S is, with plain integer instructions as there.
#
# Command line: PAGES SPAN [WAIT], hexadecimal. A tick begins SPAN * 2^16 time stamp counter ticks after the previous one.
# Each tick checks and rewrites one of PAGES pages from 0x400000, in turn, and prints one character: the tick's number
# modulo 64, counted from "0". If the accesses to the page took longer than WAIT time stamp counter ticks, and WAIT is not
# 0, the tick's character is followed by that time, in eight hexadecimal digits and parentheses.
# Prints "!" where memory is wrong, and halts. A "q" on COM1 powers off.

        .include "parts.S"

        .globl  _start
_start:
        mov     $0x80000, %esp
        mov     0x228(%rsi), %esi       # cmd_line_ptr
        call    hex
        mov     %rax, %r8               # pages
        call    hex
        shl     $16, %rax
        mov     %rax, %r9               # time stamp counter ticks
        call    hex
        mov     %rax, %r12              # time above which an access is a wait
        xor     %r10d, %r10d            # passes done
        xor     %ebx, %ebx              # ticks done
        call    ticks
        mov     %rax, %r11              # when the tick began

pass:   mov     $FIRST, %edi
        mov     %r8, %rcx
tick:   call    ticks
        mov     %rax, %r13
        rewrite_page
        call    ticks
        sub     %r13, %rax
        mov     %rax, %r13              # time of the accesses

        mov     %ebx, %eax
        and     $63, %al
        add     $'0', %al
        call    putc
        inc     %ebx

        test    %r12, %r12
        jz      read
        cmp     %r12, %r13
        jbe     read
        mov     $'(', %al
        call    putc
        mov     $8, %r14d
1:      rol     $4, %r13d
        mov     %r13d, %eax
        and     $15, %eax
        add     $'0', %al
        cmp     $'9', %al
        jbe     2f
        add     $'a' - '0' - 10, %al
2:      call    putc
        dec     %r14d
        jnz     1b
        mov     $')', %al
        call    putc
read:

        mov     $LSR, %dx
        in      %dx, %al
        test    $1, %al
        jz      wait
        mov     $COM1, %dx
        in      %dx, %al
        cmp     $'q', %al
        jne     wait
        mov     $GED, %eax
        movb    $0x34, (%rax)           # sleep type 5, sleep enable

wait:   call    ticks
        sub     %r11, %rax
        cmp     %r9, %rax
        jb      wait
        add     %rax, %r11
        dec     %rcx
        jnz     tick
        inc     %r10
        jmp     pass

wrong:  mov     $'!', %al
        call    putc
halt:   cli
        hlt
        jmp     halt

        routines

# Prints AL on the console; RDX is lost.
putc:   mov     $COM1, %dx
        out     %al, %dx
        ret
