// Search runs in a Worker, which browsers refuse to a page that was opened from the disk. There, a
// hidden frame runs the script instead. mkdocs-material's offline plugin would take such a script
// from a server; it leaves one alone that has this file's name.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement('iframe')
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      const load = (address) =>
        new Promise((resolve, reject) => {
          const script = inside.document.createElement('script')
          Object.assign(script, { src: address, onload: resolve, onerror: reject })
          inside.document.body.append(script)
        })
      inside.importScripts = async (...addresses) => {
        for (const address of addresses) await load(new URL(address, url))
      }
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent('message', { data }))
      this.inside = inside
      this.loaded = load(url)
    }

    async postMessage(data) {
      await this.loaded
      this.inside.dispatchEvent(new this.inside.MessageEvent('message', { data }))
    }
  }
}
