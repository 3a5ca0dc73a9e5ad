// Loaded into NNI's manager, which names no host for its servers and so lets them listen on every network interface.
'use strict';
const { Server } = require('net');

const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...more) {
    const namesHost = typeof more[0] === 'string';
    return typeof port === 'number' && !namesHost ? listen.call(this, port, '127.0.0.1', ...more) : listen.call(this, port, ...more);
};
