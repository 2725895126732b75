# The ticking guest: entered as tiny.S is, with plain integer instructions as there.
#
# Command line: PAGES SPAN, hexadecimal. A tick begins SPAN * 2^16 time stamp counter ticks after the previous one. Each
# tick checks and rewrites one of PAGES pages from 0x400000, in turn, and prints one character: the tick's number modulo
# 64, counted from "0". Prints "!" where memory is wrong, and halts. A "q" on COM1 powers off.

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
        xor     %r10d, %r10d            # passes done
        xor     %ebx, %ebx              # ticks done
        call    ticks
        mov     %rax, %r11              # when the tick began

pass:   mov     $FIRST, %edi
        mov     %r8, %rcx
tick:   rewrite_page

        mov     %ebx, %eax
        and     $63, %al
        add     $'0', %al
        mov     $COM1, %dx
        out     %al, %dx
        inc     %ebx

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
        mov     $COM1, %dx
        out     %al, %dx
halt:   cli
        hlt
        jmp     halt

        routines
