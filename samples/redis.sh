# A redis server under load: sets and gets of 100 bytes under 10,000 keys, by 4 clients.
redis-server --save '' --port 0 --unixsocket /tmp/redis --daemonize yes >/dev/null
while ! redis-cli -s /tmp/redis ping >/dev/null 2>&1; do :; done
redis-benchmark -s /tmp/redis -c 4 -n 1000 -r 10000 -d 100 -t set,get -q
redis-cli -s /tmp/redis shutdown
