/*
 * SPDX-License-Identifier: Apache-2.0
 *
 * The probe guest: does what a Linux kernel does with a CPU in its first milliseconds, and says how far it came.
 *
 * Runs as firmware (-bios) from the reset vector. Each stage writes its letter to the debug console (port 0xe9); after
 * the last one it ends QEMU through isa-debug-exit (port 0x501) with the value 0x2a, so QEMU's exit code is 0x55.
 *
 *   R  real mode          P  protected mode       L  long mode with its own page tables
 *   M  EFER.NX, STAR, LSTAR, CR4.PGE              F  page fault, repaired in the handler
 *   U  sysret to ring 3 and syscall back          I  interrupt of the local APIC's timer out of hlt
 *
 * The assembled bytes are in probe_image.py; a test compares the two:
 *   as --64 probe.S -o probe.o && objcopy -O binary -j .text probe.o probe.bin
 */
        .set    BASE, 0xffff0000        /* where the 64 KiB image lies */
        .set    PML4, 0x10000           /* page tables in RAM: PML4, PDPT, and a PD each for the first and the fourth GiB */
        .set    PDPT, 0x11000
        .set    PD_LOW, 0x12000
        .set    PD_HIGH, 0x13000
        .set    IDT, 0x14000
        .set    STACK, 0x20000
        .set    USER, 0x400000          /* a 2 MiB page for ring 3 */
        .set    HOLE, 0x800000          /* a 2 MiB page that is absent at first */
        .set    LAPIC, 0xfee00000

        .macro  say letter
        movb    $\letter, %al
        outb    %al, $0xe9
        .endm

        .text
start:
        .code16
real:
        cli
        say     'R'
        lgdtl   %cs:(gdt_pointer - start)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $0x08, $(BASE + protected - start)

        .code32
protected:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $STACK, %esp
        say     'P'

        cld
        movl    $PML4, %edi             /* clear all tables */
        xorl    %eax, %eax
        movl    $(0x5000 / 4), %ecx
        rep stosl
        movl    $(PDPT + 7), PML4
        movl    $(PD_LOW + 7), PDPT
        movl    $(PD_HIGH + 3), PDPT + 3 * 8
        movl    $PD_LOW, %edi
        movl    $0x83, %eax             /* present, writable, 2 MiB */
        movl    $512, %ecx
1:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    1b
        movl    $PD_HIGH, %edi
        movl    $0xc0000083, %eax
        movl    $512, %ecx
2:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    2b
        orl     $4, PD_LOW + (USER >> 21) * 8
        movl    $0, PD_LOW + (HOLE >> 21) * 8

        movl    %cr4, %eax
        orl     $0x220, %eax            /* PAE, OSFXSR */
        movl    %eax, %cr4
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       /* EFER: long mode */
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80010000, %eax       /* paging, write protect */
        movl    %eax, %cr0
        ljmpl   $0x18, $(BASE + long_mode - start)

        .code64
long_mode:
        say     'L'

        movl    $0xc0000080, %ecx       /* EFER: NX and syscall */
        rdmsr
        orl     $0x801, %eax
        wrmsr
        movl    $0xc0000081, %ecx       /* STAR: kernel 0x18/0x20, user 0x28 + 8 / 0x28 + 16 */
        xorl    %eax, %eax
        movl    $0x002b0018, %edx
        wrmsr
        movl    $0xc0000082, %ecx       /* LSTAR */
        movl    $(BASE + entered - start), %eax
        xorl    %edx, %edx
        wrmsr
        movl    $0xc0000084, %ecx       /* SFMASK: interrupts off on entry */
        movl    $0x200, %eax
        wrmsr
        movl    $0xc0000102, %ecx       /* KERNEL_GS_BASE */
        movl    $STACK, %eax
        wrmsr
        movq    %cr4, %rax
        orq     $0x80, %rax             /* PGE */
        movq    %rax, %cr4
        say     'M'

        movl    $IDT, %edi
        movl    $(BASE + page_fault - start), %eax
        movl    $14, %ebx
        call    gate
        movl    $(BASE + timer - start), %eax
        movl    $0x40, %ebx
        call    gate
        lidt    idt_pointer(%rip)
        movl    $0, HOLE + 8            /* the handler maps it */
        say     'F'

        movl    $0x050f, USER           /* syscall, in ring 3 */
        movl    $USER, %ecx
        movl    $0x2, %r11d
        sysretq
entered:
        swapgs
        movl    $STACK, %esp
        say     'U'

        movl    $LAPIC, %ebx
        movl    $0x1ff, 0xf0(%rbx)      /* spurious vector, enabled */
        movl    $0x0b, 0x3e0(%rbx)      /* divide by 1 */
        movl    $0x40, 0x320(%rbx)      /* one shot, vector 0x40 */
        movl    $100000, 0x380(%rbx)
        xorl    %esi, %esi
        sti
3:      hlt
        testl   %esi, %esi
        jz      3b
        cli
        say     'I'
        movb    $0x2a, %al
        movw    $0x501, %dx
        outb    %al, %dx
4:      hlt
        jmp     4b

gate:                                   /* %ebx vector, %eax address below 4 GiB, %rdi the IDT */
        shll    $4, %ebx
        addl    %edi, %ebx
        movw    %ax, (%rbx)
        movw    $0x18, 2(%rbx)
        movw    $0x8e00, 4(%rbx)
        shrl    $16, %eax
        movw    %ax, 6(%rbx)
        movq    $0, 8(%rbx)
        ret

page_fault:
        movq    %cr2, %rax
        cmpq    $(HOLE + 8), %rax
        jne     4b
        movl    $(HOLE + 0x83), PD_LOW + (HOLE >> 21) * 8
        invlpg  HOLE
        addq    $8, %rsp                /* the error code */
        iretq

timer:
        incl    %esi
        movl    $0, 0xb0(%rbx)          /* end of interrupt; the interrupted code keeps LAPIC in %rbx */
        iretq

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      /* 0x08 code, 32 bits */
        .quad   0x00cf93000000ffff      /* 0x10 data */
        .quad   0x00af9b000000ffff      /* 0x18 code, 64 bits */
        .quad   0x00cf93000000ffff      /* 0x20 data */
        .quad   0                       /* 0x28 */
        .quad   0x00cff3000000ffff      /* 0x30 user data */
        .quad   0x00affb000000ffff      /* 0x38 user code, 64 bits */
gdt_pointer:
        .word   . - gdt - 1
        .long   BASE + gdt - start
idt_pointer:
        .word   0x41 * 16 - 1
        .quad   IDT

        .org    0xfff0
        .code16
        jmp     real
        .org    0x10000
