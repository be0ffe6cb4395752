# shellcheck shell=sh
# Prints what stands in the way of a run, a line each. It needs nothing but a shell: modules need Python.
# "new" says that no run has been here yet; lines that begin with "other: " name a mail server that somebody else has set up.

command -v python3 > /dev/null || echo 'python3 is missing, which Ansible needs. Run apt-get install python3 there.'
command -v ss > /dev/null || echo 'ss is missing, which shows who holds a port. Run apt-get install iproute2 there.'

# A host that is updating itself has such packages, too: the installation waits for that.
if ! grep -qsxE 'dpkg|apt|apt-get|unattended-upgr' /proc/[0-9]*/comm; then
    half=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' 2> /dev/null |
        grep -E '^(half-|unpacked|triggers-)' | cut -d ' ' -f 2 | tr '\n' ' ')
    [ -z "$half" ] || echo "Packages are not completely installed: ${half% }. Run dpkg --configure -a there."
fi

# This command has a terminal; the modules of a run with pipelining have none.
if [ -n "$SUDO_USER" ] &&
    grep -rqsE '^[[:space:]]*Defaults[^!]*[[:space:]]requiretty' /etc/sudoers /etc/sudoers.d; then
    echo "sudo requires a terminal (requiretty). Add 'Defaults:$SUDO_USER !requiretty' to /etc/sudoers there."
fi

if ! [ -e /var/lib/oempro-mx ] && ! [ -e /etc/oempro-mx ]; then
    echo new
    [ -s /etc/postfix/main.cf ] && echo 'other: Postfix (/etc/postfix/main.cf)'
    [ -e /etc/dovecot/dovecot.conf ] && echo 'other: Dovecot (/etc/dovecot/dovecot.conf)'
    cd /var/spool/postfix 2> /dev/null &&
        queued=$(find incoming active deferred hold maildrop -type f 2> /dev/null | wc -l) &&
        [ "$queued" -gt 0 ] && echo "other: $queued messages in Postfix's queue"
    queued=$(find /var/spool/exim4/input -type f -name '*-H' 2> /dev/null | wc -l)
    [ "$queued" -gt 0 ] &&
        echo "other: $queued messages in Exim's queue (exim4 -qff delivers them, apt-get purge deletes them)"
fi
true
